"""`/v1/stream`: many requests over one connection."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from deepzig.errors import DeepZigError
from deepzig.runtime import Model
from deepzig.server import websocket

from .conftest import KEY, MAX_BODY, NAME
from .test_http import idle

CHAT = {"model": NAME, "messages": [{"role": "user", "content": "What is 12 plus 30?"}], "temperature": 0}
TEXT = {"model": NAME, "prompt": "Once upon a time", "temperature": 0, "max_tokens": 9}
LONG = {**TEXT, "ignore_eos": True, "max_tokens": 900, "n": 4}
WRONG = "the API key is missing or wrong"


@contextmanager
def connected(address: str, key: str | None = KEY) -> Iterator[ClientConnection]:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    url = f"{address.replace('http', 'ws')}/v1/stream"
    with connect(url, additional_headers=headers, proxy=None, max_queue=None) as one:
        yield one


@pytest.fixture
def line(address: str) -> Iterator[ClientConnection]:
    with connected(address) as one:
        yield one


def send(line: ClientConnection, number: Any, body: dict[str, Any]) -> None:
    line.send(json.dumps({"id": number, **body}))


def told(line: ClientConnection) -> Any:
    return json.loads(line.recv(timeout=30))


def test_requests_at_once(line: ClientConnection, model: Model) -> None:
    send(line, "chat", {**CHAT, "stream_options": {"include_usage": True}})
    send(line, 7, TEXT)
    texts, ended, usage = {"chat": "", 7: ""}, set(), None
    while len(ended) < 2:
        event = told(line)
        if event["event"] == "done":
            ended.add(event["id"])
            continue
        assert event["event"] == "token" and event["id"] not in ended
        usage = event["data"].get("usage") or usage
        for choice in event["data"]["choices"]:
            texts[event["id"]] += choice.get("text") or choice.get("delta", {}).get("content") or ""
    wanted = model.chat(CHAT["messages"])
    assert texts == {"chat": wanted.content, 7: model.generate(TEXT["prompt"], max_tokens=9).text}
    assert usage["completion_tokens"] == len(wanted.result.token_ids)


def test_cancel_by_id(line: ClientConnection, model: Model) -> None:
    before = model.engine.stats().generated_tokens
    send(line, "long", LONG)
    assert told(line)["event"] == "token"
    send(line, "long", {"cancel": True})
    send(line, "never", {"cancel": True})
    send(line, "short", TEXT)
    ends = {}
    while len(ends) < 2:
        event = told(line)
        if event["event"] != "token":
            ends[event.pop("id")] = event
    assert ends == {"long": {"event": "done", "cancelled": True}, "short": {"event": "done"}}
    assert idle(model) and model.engine.stats().generated_tokens - before < 900 * 4


def test_a_client_that_goes(address: str, model: Model) -> None:
    before = model.engine.stats().generated_tokens
    with connected(address) as line:
        send(line, 1, LONG)
        told(line)
    assert idle(model) and model.engine.stats().generated_tokens - before < 900 * 4


@pytest.mark.parametrize(
    ("message", "status", "param"),
    [
        ("{", 400, None),
        ("[" * 50_000, 400, None),
        ("[]", 400, None),
        ("{}", 400, "id"),
        ('{"id": true}', 400, "id"),
        ('{"id": "' + "x" * 129 + '"}', 400, "id"),
        ('{"id": 1}', 400, None),
        (json.dumps({"id": 1, **TEXT, "temperature": 9}), 400, "temperature"),
        (json.dumps({"id": 1, **TEXT, "model": "other"}), 404, "model"),
        (json.dumps({"id": 1, **CHAT, "messages": []}), 400, "messages"),
    ],
)
def test_what_does_not_fit(message: str, status: int, param: str | None, line: ClientConnection) -> None:
    line.send(message)
    event = told(line)
    assert (event["event"], event["status"], event["error"]["param"]) == ("error", status, param)
    assert event["id"] == (1 if '"id": 1' in message else None)
    send(line, 2, {**TEXT, "max_tokens": 1})
    assert told(line)["id"] == 2


def test_an_id_that_is_taken(line: ClientConnection) -> None:
    send(line, 1, LONG)
    send(line, 1, TEXT)
    while (event := told(line))["event"] == "token":
        pass
    assert event["error"]["message"] == "another request with this id is open"


def test_too_many_at_once(line: ClientConnection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "AT_ONCE", 2)
    for number in range(3):
        send(line, number, LONG)
    while (event := told(line))["event"] == "token":
        pass
    assert (event["id"], event["status"], event["error"]["code"]) == (2, 429, "too_many_requests")


def test_a_full_queue(line: ClientConnection, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.engine, "_max_waiting", 0)
    send(line, 1, TEXT)
    event = told(line)
    assert (event["status"], event["retry-after"], event["error"]["code"]) == (503, "1", "overloaded")


def test_a_model_that_fails(line: ClientConnection, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise DeepZigError("the kernel's secret", "kernel", "none")

    monkeypatch.setattr(model.backend, "call", fail)
    send(line, 1, TEXT)
    event = told(line)
    assert (event["event"], event["status"], event["error"]["code"]) == ("error", 500, "internal_error")
    assert "secret" not in str(event)


def test_the_key_in_the_first_message(address: str) -> None:
    with connected(address, None) as line:
        line.send(json.dumps({"api_key": KEY}))
        send(line, 1, TEXT)
        assert told(line)["event"] == "token"


@pytest.mark.parametrize("first", ['{"api_key": "wrong"}', '{"id": 1}', "[]", "3", "{", '{"api_key": 3}'])
def test_a_wrong_first_message(first: str, address: str) -> None:
    with connected(address, None) as line:
        line.send(first)
        with pytest.raises(ConnectionClosed):
            line.recv(timeout=30)
        assert (line.close_code, line.close_reason) == (1008, WRONG)


def test_no_message_in_time(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "KEY_SECONDS", 0.1)
    with connected(address, None) as line:
        with pytest.raises(ConnectionClosed):
            line.recv(timeout=30)
        assert line.close_code == 1008


def test_a_wrong_key_in_the_headers(address: str) -> None:
    with pytest.raises(InvalidStatus) as caught, connected(address, "wrong"):
        pass
    response = caught.value.response
    assert response.status_code == 401 and response.headers["www-authenticate"] == "Bearer"
    assert json.loads(response.body)["error"]["message"] == WRONG


def test_a_message_that_is_too_large(line: ClientConnection) -> None:
    line.send(" " * (MAX_BODY + 1))
    with pytest.raises(ConnectionClosed):
        line.recv(timeout=30)
    assert line.close_code == 1009


def test_bytes_are_no_message(line: ClientConnection) -> None:
    line.send(b"{}")
    with pytest.raises(ConnectionClosed):
        line.recv(timeout=30)
    assert (line.close_code, line.close_reason) == (1003, "messages are JSON as text")


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (b"\x81\x82\0\0\0\0\xff\xfe", 1007),  # a text that is no UTF-8
        (b"\x83\x80\0\0\0\0", 1002),  # an operation that does not exist
        (b"\xf1\x80\0\0\0\0", 1002),  # reserved bits
        (b"\x81\x02{}", 1002),  # not masked
        (b"\x80\x80\0\0\0\0", 1002),  # goes on with nothing
        (b"\x81\xff\x7f" + b"\xff" * 7 + b"\0\0\0\0", 1009),  # longer than anything
    ],
)
def test_broken_frames(frame: bytes, code: int, address: str, model: Model) -> None:
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as raw:
        raw.sendall(
            f"GET /v1/stream HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n"
            f"Authorization: Bearer {KEY}\r\n\r\n".encode()
        )
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += raw.recv(1)
        assert head.startswith(b"HTTP/1.1 101")
        raw.sendall(frame)
        answer = raw.recv(2)
        assert answer[0] == 0x88 and int.from_bytes(raw.recv(2), "big") == code
    assert idle(model)
