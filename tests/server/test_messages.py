"""Messages of both APIs as the model's template is given them."""

from __future__ import annotations

from typing import Any

import pytest

from deepzig.server.errors import ApiError
from deepzig.server.messages import ChatMessage, conversation
from deepzig.server.response_requests import ResponseRequest

CALL = {"id": "c1", "type": "function", "function": {"name": "now", "arguments": "{}"}}


def chat(*messages: dict[str, Any]) -> list[dict[str, Any]]:
    return conversation([ChatMessage(**message) for message in messages])


def test_chat_messages() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    told = chat(
        {"role": "developer", "content": "Be brief.", "name": "boss"},
        {"role": "user", "content": parts},
        {"role": "assistant", "tool_calls": [CALL]},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}], "reasoning_content": "hm"},
        {"role": "tool", "content": "3", "tool_call_id": "c1"},
    )
    assert told == [
        {"role": "system", "content": "Be brief.", "name": "boss"},
        {"role": "user", "content": "one\ntwo"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "assistant", "content": "no", "reasoning_content": "hm"},
        {"role": "tool", "content": "3", "tool_call_id": "c1"},
    ]


@pytest.mark.parametrize("part", [{"type": "image_url", "image_url": {"url": "x"}}, {"text": "a"}, {"type": "text"}])
def test_parts_that_are_no_text(part: dict[str, Any]) -> None:
    with pytest.raises(ApiError) as caught:
        chat({"role": "user", "content": [{"type": "text", "text": "a"}, part]})
    assert caught.value.body["error"]["param"] == "messages.0.content.1"


def responses(items: Any, **more: Any) -> list[dict[str, Any]]:
    return ResponseRequest(model="m", input=items, **more).messages()


def test_items_of_a_turn_are_one_message() -> None:
    told = responses(
        [
            {"role": "user", "content": [{"type": "input_text", "text": "What time is it?"}]},
            {"type": "reasoning", "id": "r", "summary": [], "content": [{"type": "reasoning_text", "text": "Ask."}]},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Wait."}]},
            {"type": "function_call", "call_id": "c1", "name": "now", "arguments": "{}"},
            {"type": "function_call", "call_id": "c1", "name": "now", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "3"},
            {"role": "developer", "content": "Be brief."},
        ],
        instructions="You are a clock.",
    )
    assert told == [
        {"role": "system", "content": "You are a clock."},
        {"role": "user", "content": "What time is it?"},
        {"role": "assistant", "content": "Wait.", "reasoning_content": "Ask.", "tool_calls": [CALL, CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": "3"},
        {"role": "system", "content": "Be brief."},
    ]
    assert responses("Hi") == [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize(
    ("item", "param"),
    [
        ({"type": "item_reference", "id": "x"}, "input.0.type"),
        ({"role": "user"}, "input.0.content"),
        ({"content": "a"}, "input.0.role"),
        ({"role": "user", "content": [{"type": "input_image"}]}, "input.0.content.0"),
        ({"type": "function_call", "name": "now", "arguments": "{}"}, "input.0.call_id"),
        ({"type": "function_call", "call_id": "c", "name": "now", "arguments": {}}, "input.0.arguments"),
        ({"type": "function_call_output", "call_id": "c"}, "input.0.output"),
        ({"type": "reasoning", "content": "a"}, "input.0.content"),
    ],
)
def test_items_that_do_not_fit(item: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        responses([item])
    assert caught.value.body["error"]["param"] == param
