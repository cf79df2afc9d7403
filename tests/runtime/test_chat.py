"""Chat messages: answers taken apart, calls of tools that are held to their schemas."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from deepzig.errors import DeepZigError
from deepzig.runtime.chat import Message, ToolCall
from deepzig.runtime.model import Model

from . import fake
from .parsers.answers import SIGNS, TOOLS, VOCAB, tokenizer
from .parsers.examples import BEGIN, END, V3_CALL

TEMPLATE = (
    SIGNS["deepseek-v3"].replace("{{", "{# ").replace("}}", " #}")
    + "{% for m in messages %}{{ m.content }}{% endfor %}"
)
HI = [{"role": "user", "content": "hi"}]
SAID = f"<think>Well.</think>Look:{BEGIN}" + V3_CALL.format("now", "{}") + END


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer(folder, "deepseek-v3", template=TEMPLATE)
    return folder


def saying(folder: Path, text: str) -> Model:
    made = fake.model(folder, fake.babble(VOCAB), vocab=VOCAB)
    prompt = len(made.tokenizer.encode_chat(HI, TOOLS))
    tokens = made.tokenizer.encode(text, special=False)
    return fake.model(folder, fake.script(VOCAB, prompt, tokens), vocab=VOCAB, pages=200, positions=600)


def test_an_answer_is_taken_apart(folder: Path) -> None:
    model = saying(folder, SAID)
    got = model.chat(HI, tools=TOOLS)
    [call] = got.tool_calls
    want = Message("Look:", "Well.", (ToolCall(call.id, "now", "{}"),), "tool_calls")
    assert got.messages == (want,) and call.id.startswith("call_")
    assert (got.content, got.finish_reason, got.result.finish_reason) == ("Look:", "tool_calls", "tool_calls")
    again = asyncio.run(model.achat(HI, tools=TOOLS))
    assert (again.content, again.reasoning_content, len(again.tool_calls)) == ("Look:", "Well.", 1)


def test_pieces_as_they_come(folder: Path) -> None:
    model = saying(folder, SAID)
    with model.submit_chat(HI, tools=TOOLS) as generation:
        pieces = list(generation)
    deltas = [delta for piece in pieces for delta in piece.deltas]
    assert "".join(d.reasoning for d in deltas) == "Well." and "".join(d.content for d in deltas) == "Look:"
    assert [p.piece.finish_reason for p in pieces] == [None] * (len(pieces) - 1) + ["tool_calls"]
    assert len(deltas) > 6


def test_without_tools_calls_are_text(folder: Path) -> None:
    model = saying(folder, SAID)
    for asked in ({}, {"tools": TOOLS, "tool_choice": "none"}):
        got = model.chat(HI, **asked)
        assert not got.tool_calls and got.finish_reason == "stop" and "now" in got.content


def test_a_call_can_be_forced(folder: Path) -> None:
    """Of a model that babbles: the call has the function's name and arguments that fit, all the same."""
    model = fake.model(folder, fake.babble(VOCAB), vocab=VOCAB, pages=800, positions=3000)
    named = {"type": "function", "function": {"name": "now"}}
    closed = [{"role": "user", "content": "hi</think>"}]
    got = model.chat(closed, tools=TOOLS, tool_choice=named, max_tokens=200)
    assert [(c.name, json.loads(c.arguments)) for c in got.tool_calls] == [("now", {})]
    assert got.finish_reason == "tool_calls" and not got.content


def refused(model: Model, **asked: Any) -> str:
    with pytest.raises(DeepZigError) as caught:
        model.chat(HI, **asked)
    return str(caught.value)


def test_what_does_not_fit(folder: Path) -> None:
    model = saying(folder, "hi")
    assert refused(model, tools=TOOLS, tool_choice="always").startswith(
        "tool_choice is 'always'\n  at: option tool_choice"
    )
    assert refused(model, parser="nobody").startswith("no parser is called 'nobody'\n  at: option parser\n")
    assert model.pool.free == model.pool.count
