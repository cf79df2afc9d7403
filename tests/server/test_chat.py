"""Chat as the `openai` client sees it, against what the model says when it is asked directly."""

from __future__ import annotations

import json
import secrets
from typing import Any

import openai
import pytest
from openai import OpenAI
from pydantic import BaseModel, Field

from deepzig.runtime import Model

from .conftest import NAME

ASKED: list[Any] = [{"role": "user", "content": "What is 12 plus 30?"}]
STORY: list[Any] = [{"role": "user", "content": "Tell me a story."}]
SCHEMA = {
    "type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"], "additionalProperties": False,
}  # fmt: skip


def ask(client: Any, messages: list[Any] = ASKED, **options: Any) -> Any:
    return client.chat.completions.create(**{"model": NAME, "messages": messages, "temperature": 0, **options})


def test_an_answer(client: Any, model: Model) -> None:
    wanted = model.chat(ASKED)
    answer = ask(client)
    choice = answer.choices[0]
    assert (choice.message.content, choice.finish_reason) == (wanted.content, "stop") and "42" in wanted.content
    assert choice.message.role == "assistant" and answer.object == "chat.completion" and answer.model == NAME
    made = len(wanted.result.token_ids)
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (wanted.result.prompt_tokens, made)
    assert answer.usage.total_tokens == wanted.result.prompt_tokens + made
    assert answer.system_fingerprint.startswith("fp_")


@pytest.mark.parametrize("n", [1, 3])
def test_a_stream(n: int, client: Any, model: Model) -> None:
    options: dict[str, Any] = {"n": n, "temperature": 0.9, "seed": 7, "max_tokens": 24}
    wanted = model.chat(STORY, **options)
    parts = list(ask(client, STORY, stream=True, stream_options={"include_usage": True}, **options))
    assert len({(part.id, part.created, part.model) for part in parts}) == 1
    texts, reasons = [""] * n, [None] * n
    for part in parts[:-1]:
        assert part.object == "chat.completion.chunk" and part.usage is None and len(part.choices) == 1
        choice = part.choices[0]
        texts[choice.index] += choice.delta.content or ""
        reasons[choice.index] = choice.finish_reason or reasons[choice.index]
    assert [part.choices[0].delta.role for part in parts[:n]] == ["assistant"] * n
    assert texts == [message.content for message in wanted.messages]
    assert reasons == [message.finish_reason for message in wanted.messages]
    assert parts[-1].choices == []
    assert parts[-1].usage.completion_tokens == sum(len(one.token_ids) for one in wanted.result.choices)


def test_a_stream_tells_no_usage_unless_asked(client: Any) -> None:
    assert all(part.choices and part.usage is None for part in ask(client, stream=True))


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs(stream: bool, client: Any, model: Model) -> None:
    wanted = model.chat(ASKED, logprobs=True, top_logprobs=3).result
    answer = ask(client, logprobs=True, top_logprobs=3, stream=stream)
    told = [part.choices[0].logprobs for part in answer] if stream else [answer.choices[0].logprobs]
    entries = [entry for one in told if one for entry in one.content]
    assert wanted.logprobs
    assert [entry.logprob for entry in entries] == [one.logprob for one in wanted.logprobs]
    assert b"".join(bytes(entry.bytes) for entry in entries).decode() == wanted.text
    assert [[top.logprob for top in entry.top_logprobs] for entry in entries] == [
        [value for _, value in one.top] for one in wanted.logprobs
    ]


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_text_is_not_shown(stream: bool, client: Any) -> None:
    full = ask(client).choices[0].message.content
    stop = full[3:5]
    answer = ask(client, stop=[stop, "never"], stream=stream)
    text = (
        "".join(part.choices[0].delta.content or "" for part in answer) if stream else answer.choices[0].message.content
    )
    assert text == full[: full.index(stop)]


def test_the_same_seed_gives_the_same_answer(client: Any) -> None:
    options: dict[str, Any] = {"temperature": 1.5, "max_tokens": 20}
    one, two, other = (ask(client, STORY, seed=seed, **options).choices[0].message.content for seed in (3, 3, 4))
    assert one == two != other


def test_extensions(client: Any, model: Model) -> None:
    options: dict[str, Any] = {"top_k": 1, "min_p": 0.1, "repetition_penalty": 1.3, "ignore_eos": True}
    wanted = model.chat(ASKED, max_tokens=30, temperature=1.0, **options)
    extra = {**options, "cache_salt": "a", "priority": 2, "chat_template_kwargs": {"enable_thinking": False}, "new": 1}
    answer = ask(client, max_completion_tokens=30, temperature=None, extra_body=extra)
    assert answer.choices[0].message.content == wanted.content
    assert answer.usage.completion_tokens == 30 and answer.choices[0].finish_reason == "length"


def test_an_answer_can_be_made_longer(client: Any) -> None:
    made = ask(client, max_tokens=30, extra_body={"min_tokens": 25}).usage.completion_tokens
    assert ask(client, max_tokens=30).usage.completion_tokens < 25 <= made


def test_a_long_beginning_is_found_read(client: Any) -> None:
    messages = [{"role": "user", "content": "Reverse the word lamp. " * 12}]
    salt = secrets.token_hex(8)
    first, second = (ask(client, messages, max_tokens=2, extra_body={"cache_salt": salt}) for _ in range(2))
    assert first.usage.prompt_tokens_details.cached_tokens == 0 < second.usage.prompt_tokens_details.cached_tokens


@pytest.mark.parametrize(
    "response_format",
    [{"type": "json_object"}, {"type": "json_schema", "json_schema": {"name": "a", "strict": True, "schema": SCHEMA}}],
)
def test_response_format(response_format: Any, client: Any) -> None:
    answer = ask(client, STORY, response_format=response_format, max_tokens=200)
    assert answer.choices[0].finish_reason == "stop"
    value = json.loads(answer.choices[0].message.content)
    assert isinstance(value, dict)
    if response_format["type"] == "json_schema":
        assert list(value) == ["age"] and isinstance(value["age"], int)


def test_messages_and_fields_of_all_kinds(client: Any, model: Model) -> None:
    """Parts, names, the newer role, and fields that change nothing."""
    parts = [{"type": "text", "text": text} for text in ("Be brief.", "What is", "2?")]
    messages = [
        {"role": "developer", "content": parts[:1]}, {"role": "user", "name": "ann", "content": parts[1:]}
    ]  # fmt: skip
    wanted = model.chat(
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is\n2?"}], max_tokens=9
    )
    ignored = {"metadata": {"a": "b"}, "store": True, "user": "ann", "service_tier": "auto", "reasoning_effort": "low"}
    answer = ask(client, messages, max_tokens=9, **ignored)
    assert answer.choices[0].message.content == wanted.content and answer.choices[0].message.refusal is None
    assert answer.usage.prompt_tokens == wanted.result.prompt_tokens
    assert answer.usage.completion_tokens_details.reasoning_tokens == 0


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"temperature": 3}, "temperature"),
        ({"n": 0}, "n"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"max_tokens": "many"}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"max_tokens": 3, "extra_body": {"min_tokens": 4}}, "min_tokens"),
        ({"extra_body": {"top_k": 1.5}}, "top_k"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages.0.content"),
        ({"messages": [{"content": "a"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content.0"),
    ],
)
def test_what_does_not_fit(options: dict[str, Any], param: str, client: Any) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, **options)
    assert caught.value.param == param and caught.value.type == "invalid_request_error"


class Person(BaseModel):
    age: int = Field(ge=0, le=120)


def test_the_client_s_own_helpers(openai_client: OpenAI, model: Model) -> None:
    """An answer as an object of a class, and a stream that puts itself together."""
    parsed = openai_client.chat.completions.parse(
        model=NAME, messages=STORY, response_format=Person, max_tokens=99, temperature=0
    )
    assert isinstance(parsed.choices[0].message.parsed, Person)
    with openai_client.chat.completions.stream(model=NAME, messages=ASKED, temperature=0) as stream:
        kinds = {event.type for event in stream}
        told = stream.get_final_completion().choices[0]
    assert (told.message.content, told.finish_reason) == (model.chat(ASKED).content, "stop")
    assert {"content.delta", "content.done"} <= kinds


def test_an_error_in_a_stream_is_raised_with_its_code(
    client: Any, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("the kernel's secret")

    monkeypatch.setattr(model.backend, "call", fail)
    with pytest.raises(openai.APIError) as caught:
        list(ask(client, stream=True))
    assert (caught.value.code, caught.value.type) == ("internal_error", "server_error")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("stream", [False, True])
def test_every_stop_text_of_four(stream: bool, client: Any) -> None:
    """Of whatever length, at whatever place: what is told is what comes before the first of them."""
    full = ask(client).choices[0].message.content
    for begin in range(1, len(full) - 1):
        stops = [full[begin : begin + 2], full[begin + 1 :], "never", "\n\n"]
        answer = ask(client, stop=stops, stream=stream)
        parts = [part.choices[0].delta.content or "" for part in answer] if stream else [said(answer)]
        assert "".join(parts) == full[: min(full.index(stop) for stop in stops[:2])]


def said(answer: Any) -> str:
    text: str = answer.choices[0].message.content
    return text
