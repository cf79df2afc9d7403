"""Reasoning and calls of tools, as the `openai` client sees them, of models that say what the test wants."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from deepzig.runtime import Model
from deepzig.server import Access

from ..runtime import fake
from ..runtime.parsers.answers import TOOLS, VOCAB
from ..runtime.test_chat import HI, SAID, folder, saying
from .conftest import NAME, serving

__all__ = ["folder"]

NAMED: dict[str, Any] = {"type": "function", "function": {"name": "now"}}
CLOSED = [{"role": "user", "content": "hi</think>"}]
"""Babble would reason for ever."""


def client_of(model: Model) -> Iterator[OpenAI]:
    with serving({NAME: model}, Access()) as url, OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as one:
        yield one


@pytest.fixture(scope="module")
def scripted(folder: Path) -> Iterator[OpenAI]:
    yield from client_of(saying(folder, SAID))


@pytest.fixture(scope="module")
def babbling(folder: Path) -> Iterator[OpenAI]:
    yield from client_of(fake.model(folder, fake.babble(VOCAB), vocab=VOCAB, pages=800, positions=3000))


def ask(client: OpenAI, messages: list[Any], **options: Any) -> Any:
    asked = {"model": NAME, "messages": messages, "tools": TOOLS, "temperature": 0, "max_tokens": 200, **options}
    return client.chat.completions.create(**asked)


def test_an_answer_is_taken_apart(scripted: OpenAI) -> None:
    choice = ask(scripted, HI).choices[0]
    message = choice.message
    assert (message.reasoning_content, message.content, choice.finish_reason) == ("Well.", "Look:", "tool_calls")
    [call] = message.tool_calls
    assert (call.type, call.function.name, call.function.arguments) == ("function", "now", "{}") and call.id


def test_a_stream_is_taken_apart(scripted: OpenAI) -> None:
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
def test_a_call_can_be_forced(choice: Any, babbling: OpenAI) -> None:
    tools = TOOLS if choice == NAMED else [tool for tool in TOOLS if tool["function"]["name"] == "now"]
    answer = ask(babbling, CLOSED, tools=tools, tool_choice=choice, parallel_tool_calls=False).choices[0]
    [call] = answer.message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("now", {})
    assert answer.finish_reason == "tool_calls" and answer.message.content is None


def test_none_forbids_calls(scripted: OpenAI) -> None:
    choice = ask(scripted, HI, tool_choice="none").choices[0]
    assert not choice.message.tool_calls and choice.finish_reason == "stop"
