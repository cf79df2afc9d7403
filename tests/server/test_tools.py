"""Reasoning and calls of tools, as the `openai` client sees them, of models that say what the test wants."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from deepzig.runtime import Model
from deepzig.server import Access

from ..runtime import fake
from ..runtime.parsers.answers import TOOLS, VOCAB
from ..runtime.test_chat import HI, SAID, folder, saying
from .conftest import FORMS, NAME, connected, serving

__all__ = ["folder"]

NAMED: dict[str, Any] = {"type": "function", "function": {"name": "now"}}
CLOSED = [{"role": "user", "content": "hi</think>"}]
"""Babble would reason for ever."""


@contextmanager
def client_of(form: str, model: Model) -> Iterator[Any]:
    with serving({NAME: model}, Access()) as url, connected(form, url) as one:
        yield one


@pytest.fixture(scope="module", params=FORMS)
def scripted(request: pytest.FixtureRequest, folder: Path) -> Iterator[Any]:
    with client_of(request.param, saying(folder, SAID)) as one:
        yield one


@pytest.fixture(scope="module", params=FORMS)
def babbling(request: pytest.FixtureRequest, folder: Path) -> Iterator[Any]:
    babble = fake.model(folder, fake.babble(VOCAB), vocab=VOCAB, pages=800, positions=3000)
    with client_of(request.param, babble) as one:
        yield one


def ask(client: Any, messages: list[Any], **options: Any) -> Any:
    asked = {"model": NAME, "messages": messages, "tools": TOOLS, "temperature": 0, "max_tokens": 200, **options}
    return client.chat.completions.create(**asked)


def test_an_answer_is_taken_apart(scripted: Any) -> None:
    choice = ask(scripted, HI).choices[0]
    message = choice.message
    assert (message.reasoning_content, message.content, choice.finish_reason) == ("Well.", "Look:", "tool_calls")
    [call] = message.tool_calls
    assert (call.type, call.function.name, call.function.arguments) == ("function", "now", "{}") and call.id


def test_a_stream_is_taken_apart(scripted: Any) -> None:
    parts = [part.choices[0] for part in ask(scripted, HI, stream=True)]
    deltas = [part.delta for part in parts]
    assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas) == "Well."
    assert "".join(delta.content or "" for delta in deltas) == "Look:"
    assert [part.finish_reason for part in parts] == [None] * (len(parts) - 1) + ["tool_calls"]
    calls = [call for delta in deltas for call in delta.tool_calls or []]
    assert {call.index for call in calls} == {0} and (calls[0].type, calls[0].function.name) == ("function", "now")
    assert calls[0].id and not any(call.id or call.function.name for call in calls[1:])
    assert "".join(call.function.arguments for call in calls) == "{}"


@pytest.mark.parametrize("choice", ["required", NAMED], ids=["required", "named"])
def test_a_call_can_be_forced(choice: Any, babbling: Any) -> None:
    tools = TOOLS if choice == NAMED else [tool for tool in TOOLS if tool["function"]["name"] == "now"]
    answer = ask(babbling, CLOSED, tools=tools, tool_choice=choice, parallel_tool_calls=False).choices[0]
    [call] = answer.message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("now", {})
    assert answer.finish_reason == "tool_calls" and answer.message.content is None


def test_none_forbids_calls(scripted: Any) -> None:
    choice = ask(scripted, HI, tool_choice="none").choices[0]
    assert not choice.message.tool_calls and choice.finish_reason == "stop"


def test_a_forced_call_in_a_stream(babbling: Any) -> None:
    """Also several functions, and several calls: each has its index, and its id first."""
    parts = ask(babbling, CLOSED, tool_choice="required", parallel_tool_calls=True, stream=True, max_tokens=400)
    calls: dict[int, dict[str, str]] = {}
    for call in (call for part in parts for call in part.choices[0].delta.tool_calls or []):
        if call.index not in calls:
            assert call.id and call.function.name and call.type == "function"
            calls[call.index] = {"name": call.function.name, "arguments": ""}
        calls[call.index]["arguments"] += call.function.arguments
    assert list(calls) == list(range(len(calls))) and calls
    for call in list(calls.values())[:-1]:  # the last one may be cut
        assert call["name"] in ("now", "get_weather") and isinstance(json.loads(call["arguments"]), dict)


def test_reasoning_is_counted(scripted: Any) -> None:
    usage = ask(scripted, HI).usage
    assert 0 < usage.completion_tokens_details.reasoning_tokens < usage.completion_tokens
    parts = list(ask(scripted, HI, stream=True, stream_options={"include_usage": True}))
    assert parts[-1].usage.completion_tokens_details == usage.completion_tokens_details


def test_the_way_of_a_tool(babbling: Any) -> None:
    """What was called and what came of it goes back, as the client's own objects."""
    message = ask(babbling, CLOSED, tool_choice=NAMED).choices[0].message
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "three"}
    answer = ask(babbling, [*CLOSED, message, result, *CLOSED], max_tokens=5)
    assert answer.usage.completion_tokens == 5
