"""What the `openai` client does not show: headers, framing, errors, and clients that go."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from deepzig.errors import DeepZigError
from deepzig.runtime import Model

from .conftest import KEY, NAME

CHAT = "/v1/chat/completions"
BODY: dict[str, Any] = {"model": NAME, "messages": [{"role": "user", "content": "Spell lamp."}], "temperature": 0}
LONG = {**BODY, "ignore_eos": True, "max_tokens": 900, "n": 8}


@pytest.fixture
def http(address: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=address, headers={"Authorization": f"Bearer {KEY}"}, timeout=20) as one:
        yield one


def idle(model: Model) -> bool:
    """Whether all work ends soon."""
    for _ in range(500):
        stats = model.engine.stats()
        if not stats.running + stats.waiting:
            return True
        time.sleep(0.01)
    return False


def test_framing(http: httpx.Client) -> None:
    answer = http.post(CHAT, json={**BODY, "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = answer.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all(json.loads(event.removeprefix("data: "))["choices"] for event in events[:-2])


def test_health_needs_no_key(address: str) -> None:
    assert httpx.get(f"{address}/health").json() == {"status": "ok"}


@pytest.mark.parametrize("given", [None, "Bearer wrong", f"Basic {KEY}", "Bearer", KEY])
def test_without_the_key(given: str | None, address: str) -> None:
    answer = httpx.post(f"{address}{CHAT}", json=BODY, headers={"Authorization": given} if given else {})
    assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["error"] == {
        "message": "the API key is missing or wrong", "type": "invalid_request_error", "param": None,
        "code": "invalid_api_key",
    }  # fmt: skip


def test_request_ids(http: httpx.Client) -> None:
    assert http.get("/v1/models", headers={"x-request-id": "mine"}).headers["x-request-id"] == "mine"
    ids = {http.get(path).headers["x-request-id"] for path in ("/health", "/v1/models", "/nowhere")}
    assert len(ids) == 3 and all(ids)


@pytest.mark.parametrize("told", [True, False], ids=["with-length", "chunked"])
def test_a_body_that_is_too_large(told: bool, http: httpx.Client) -> None:
    body = b"x" * 100_001
    answer = http.post(CHAT, content=body if told else iter([body[:70_000], body[70_000:]]))
    assert answer.status_code == 413 and answer.json()["error"]["code"] == "request_too_large"


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"\xff\xfe{}", b"[" * 50_000, b'{"model": 3}',
        json.dumps({**BODY, "temperature": float("nan")}).encode(),
        json.dumps({**BODY, "messages": [{"role": "user", "content": "\ud800"}]}).encode(),
        json.dumps({**BODY, "messages": [{"role": "user"}]}).encode(),
        json.dumps({**BODY, "messages": ["Hello"]}).encode(),
        json.dumps({**BODY, "n": 10**9}).encode(),
        json.dumps({**BODY, "seed": 10**30}).encode(),
        json.dumps({**BODY, "stop": [""]}).encode(),
        json.dumps({**BODY, "tools": [{"type": "function"}], "tool_choice": "auto"}).encode(),
        json.dumps({**BODY, "chat_template_kwargs": {"template": "{{ 1 }}"}}).encode(),
        json.dumps({**BODY, "chat_template_kwargs": {"messages": []}}).encode(),
        json.dumps({**BODY, "logit_bias": {"x": 1}}).encode(),
    ],
)  # fmt: skip
def test_hostile_bodies(body: bytes, http: httpx.Client) -> None:
    answer = http.post(CHAT, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400, answer.text
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("application/json; charset=utf-8", 200), ("application/problem+JSON", 200), (None, 415), ("text/plain", 415),
        ("application/x-www-form-urlencoded", 415), ("text/application/json", 415), ("application/jsonx", 415),
    ],
)  # fmt: skip
def test_bodies_have_to_be_said_to_be_json(kind: str | None, status: int, http: httpx.Client) -> None:
    body = json.dumps({**BODY, "max_tokens": 2}).encode()
    answer = http.post(CHAT, content=body, headers={"content-type": kind} if kind else {})
    assert answer.status_code == status
    if status == 415:
        message = "the body is not said to be JSON: send the header Content-Type: application/json"
        assert answer.json()["error"]["message"] == message


def test_paths_and_methods(http: httpx.Client) -> None:
    assert http.get("/nowhere").json()["error"]["message"] == "there is no such path"
    assert (http.get("/nowhere").status_code, http.get(CHAT).status_code) == (404, 405)


def test_a_full_queue(http: httpx.Client, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.engine, "_max_waiting", 0)
    answer = http.post(CHAT, json=BODY)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert answer.json()["error"]["code"] == "overloaded"


def test_a_client_that_goes_while_it_reads(http: httpx.Client, model: Model) -> None:
    before = model.engine.stats().generated_tokens
    with http.stream("POST", CHAT, json={**LONG, "stream": True}) as answer:
        next(answer.iter_lines())
    assert idle(model) and 0 < model.engine.stats().generated_tokens - before < 900 * 8


def test_a_client_that_goes_while_it_waits(http: httpx.Client, model: Model) -> None:
    before = model.engine.stats().generated_tokens
    with pytest.raises(httpx.ReadTimeout):
        http.post(CHAT, json=LONG, timeout=0.2)
    assert idle(model) and 0 < model.engine.stats().generated_tokens - before < 900 * 8


@pytest.mark.parametrize("stream", [False, True])
def test_a_model_that_fails(
    stream: bool, http: httpx.Client, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise DeepZigError("the kernel's secret", "kernel", "none")

    monkeypatch.setattr(model.backend, "call", fail)
    answer = http.post(CHAT, json={**BODY, "stream": stream})
    assert "secret" not in answer.text
    if stream:
        assert answer.status_code == 200 and "[DONE]" not in answer.text
        told = json.loads(answer.text.split("data: ")[-1])
    else:
        assert answer.status_code == 500
        told = answer.json()
    assert told["error"]["code"] == "internal_error" and told["error"]["type"] == "server_error"
