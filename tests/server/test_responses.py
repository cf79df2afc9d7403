"""OpenAI's newer API, as the `openai` client sees it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI
from pydantic import BaseModel, Field

from deepzig.errors import DeepZigError
from deepzig.runtime import Model

from ..runtime.parsers.answers import TOOLS
from ..runtime.test_chat import SAID, folder, saying
from .conftest import KEY, NAME
from .test_tools import client_of

__all__ = ["folder"]

ASKED = "What is 12 plus 30?"
FLAT = [{"type": "function", "strict": False, **tool["function"]} for tool in TOOLS]


class Person(BaseModel):
    age: int = Field(ge=0, le=120)


def ask(client: Any, **options: Any) -> Any:
    return client.responses.create(**{"model": NAME, "input": ASKED, "temperature": 0, **options})


@pytest.fixture(scope="module")
def scripted(folder: Path) -> Iterator[OpenAI]:
    with client_of("sync", saying(folder, SAID)) as one:
        yield one


def test_a_response(client: Any, model: Model) -> None:
    wanted = model.chat([{"role": "user", "content": ASKED}])
    told = ask(client, metadata={"a": "b"}, store=True)
    [message] = told.output
    assert (message.type, message.role, message.status) == ("message", "assistant", "completed")
    assert (told.output_text, told.status, told.object) == (wanted.content, "completed", "response")
    assert (told.usage.input_tokens, told.usage.output_tokens) == (
        wanted.result.prompt_tokens, len(wanted.result.token_ids)
    )  # fmt: skip
    assert told.usage.total_tokens == told.usage.input_tokens + told.usage.output_tokens
    assert told.metadata == {"a": "b"} and told.store is False and told.error is None
    assert told.id.startswith("resp-") and told.usage.output_tokens_details.reasoning_tokens == 0


def test_a_conversation_is_sent_whole(client: Any, model: Model) -> None:
    first = ask(client, instructions="Be brief.")
    items = [{"role": "user", "content": ASKED}, *(item.model_dump() for item in first.output)]
    more = {"role": "user", "content": "Reverse the word lamp."}
    second = ask(client, instructions="Be brief.", input=[*items, more])
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": ASKED},
        {"role": "assistant", "content": first.output_text},
        more,
    ]
    assert second.output_text == model.chat(messages).content


@pytest.mark.parametrize("most", [3, None])
def test_a_stream_has_its_events_in_order(most: int | None, client: Any) -> None:
    wanted = ask(client, max_output_tokens=most)
    events = list(ask(client, max_output_tokens=most, stream=True))
    kinds = [event.type for event in events]
    deltas = kinds.count("response.output_text.delta")
    end = "completed" if most is None else "incomplete"
    assert kinds == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
        *["response.output_text.delta"] * deltas, "response.output_text.done", "response.content_part.done",
        "response.output_item.done", f"response.{end}",
    ]  # fmt: skip
    assert [event.sequence_number for event in events] == list(range(len(events)))
    told = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    last = events[-1].response
    assert told == last.output_text == wanted.output_text and deltas > 1
    assert last.status == last.output[0].status == end == wanted.status
    assert last.usage == wanted.usage or last.usage.input_tokens_details != wanted.usage.input_tokens_details
    if most:
        assert last.incomplete_details.reason == "max_output_tokens" and last.usage.output_tokens == most
    assert len({event.response.id for event in events if hasattr(event, "response")}) == 1


def test_reasoning_and_calls(scripted: OpenAI) -> None:
    told = ask(scripted, input="hi", tools=FLAT)
    reasoning, message, call = told.output
    assert reasoning.content[0].text == "Well." and told.output_text == "Look:"
    assert (call.type, call.name, call.arguments, call.status) == ("function_call", "now", "{}", "completed")
    assert call.call_id.startswith("call_") and call.id.startswith("fc-") and message.id.startswith("msg-")
    assert 0 < told.usage.output_tokens_details.reasoning_tokens < told.usage.output_tokens


def test_the_client_s_own_reader_of_streams(scripted: OpenAI) -> None:
    wanted = ask(scripted, input="hi", tools=FLAT)
    with scripted.responses.stream(model=NAME, input="hi", tools=FLAT, temperature=0) as stream:
        events = list(stream)
        told = stream.get_final_response()
    kinds = [event.type for event in events]
    strip = lambda items: [  # noqa: E731
        {name: value for name, value in item.model_dump().items() if name not in ("id", "call_id", "parsed_arguments")}
        for item in items
    ]  # fmt: skip
    assert [item.type for item in told.output] == ["reasoning", "message", "function_call"]
    assert strip(told.output)[2] == strip(wanted.output)[2]
    for kind in ("reasoning_text", "output_text", "function_call_arguments"):
        at = [number for number, name in enumerate(kinds) if name == f"response.{kind}.delta"]
        assert at and kinds[at[-1] + 1] == f"response.{kind}.done"
    text = "".join(event.delta for event in events if event.type == "response.reasoning_text.delta")
    assert text == "Well." == told.output[0].content[0].text


def test_text_that_fits_a_schema(client: Any) -> None:
    schema = {**Person.model_json_schema(), "additionalProperties": False}
    form = {"type": "json_schema", "name": "person", "strict": True, "schema": schema}
    told = ask(client, input="Tell me a story.", text={"format": form}, max_output_tokens=200)
    assert Person.model_validate_json(told.output_text)
    assert told.text.format.name == "person"
    told = ask(client, input="Tell me a story.", text={"format": {"type": "json_object"}}, max_output_tokens=200)
    assert isinstance(json.loads(told.output_text), dict)


def test_parsed(openai_client: OpenAI) -> None:
    told = openai_client.responses.parse(
        model=NAME, input="Tell me a story.", text_format=Person, max_output_tokens=99, temperature=0
    )
    assert isinstance(told.output_parsed, Person)


def test_logprobs(client: Any, model: Model) -> None:
    wanted = model.chat([{"role": "user", "content": ASKED}], logprobs=True, top_logprobs=2).result.logprobs
    assert wanted
    told = ask(client, top_logprobs=2, include=["message.output_text.logprobs"])
    entries = told.output[0].content[0].logprobs
    assert [one.logprob for one in entries] == [one.logprob for one in wanted]
    assert bytes(byte for one in entries for byte in one.bytes).decode() == told.output_text
    events = ask(client, top_logprobs=2, stream=True)
    streamed = [one for event in events if event.type == "response.output_text.delta" for one in event.logprobs]
    assert [one.logprob for one in streamed] == [one.logprob for one in wanted]


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"previous_response_id": "resp-1"}, "previous_response_id"),
        ({"conversation": "c"}, "conversation"),
        ({"background": True}, "background"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": FLAT, "tool_choice": {"type": "function", "name": "never"}}, "tool_choice"),
        ({"input": []}, "input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input.0.type"),
        ({"temperature": 9}, "temperature"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
    ],
)
def test_what_does_not_fit(options: dict[str, Any], param: str, client: Any) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, **options)
    assert caught.value.param == param
    if param == "previous_response_id":
        told = caught.value.body["message"]
        assert told == (
            "previous_response_id is not supported: responses are not stored; send the whole conversation as input"
        )


def test_a_model_that_fails(address: str, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise DeepZigError("the kernel's secret", "kernel", "none")

    monkeypatch.setattr(model.backend, "call", fail)
    body = {"model": NAME, "input": ASKED, "stream": True}
    answer = httpx.post(f"{address}/v1/responses", json=body, headers={"Authorization": f"Bearer {KEY}"})
    *_, last, end = answer.text.split("\n\n")
    name, data = last.split("\n")
    told = json.loads(data.removeprefix("data: "))
    assert (end, name, told["type"], told["code"]) == ("", "event: error", "error", "internal_error")
    assert "secret" not in answer.text and told["sequence_number"] == 2
