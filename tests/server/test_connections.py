"""Clients that speak no clean HTTP: slow ones, large heads, too many connections."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import pytest

from deepzig.runtime import Model
from deepzig.server import Access
from deepzig.server.limits import RequestLimits
from deepzig.server.protocol import ConnectionLimits

from .conftest import NAME, serving

POST = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module")
def strict(model: Model) -> Iterator[tuple[str, int]]:
    connections = ConnectionLimits(connections=6, head=8000, head_seconds=0.4)
    with serving({NAME: model}, Access(request=RequestLimits(body_seconds=0.4)), connections) as url:
        place = urlsplit(url)
        assert place.hostname and place.port
        yield place.hostname, place.port


def read(connection: socket.socket) -> bytes:
    """All until the server closes."""
    parts = []
    connection.settimeout(10)
    try:
        while part := connection.recv(65536):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


def said(place: tuple[str, int], *parts: bytes, pause: float = 0.0) -> bytes:
    """What is answered until the connection is closed; it must be."""
    with socket.create_connection(place) as connection:
        try:
            for part in parts:
                connection.sendall(part)
                time.sleep(pause)
        except (BrokenPipeError, ConnectionResetError):
            pass
        return read(connection)


@pytest.mark.parametrize(
    "parts",
    [
        [b"GET /health HTT"],
        [b"GET /health HTTP/1.1\r\n", *[b"a: b\r\n"] * 20],
        [b"\r\n"] * 20,
        [b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n", b"GET /hea", *[b"x"] * 20],
    ],
    ids=["stops", "drips", "drips-nothing", "drips-the-second"],
)
def test_a_slow_head(parts: list[bytes], strict: tuple[str, int]) -> None:
    answer = said(strict, *parts, pause=0.05)
    assert answer.count(b"HTTP/1.1 408") == 1
    assert answer.count(b"HTTP/1.1 200") == parts[0].endswith(b"\r\n\r\n")


def test_silence_is_not_kept(strict: tuple[str, int]) -> None:
    assert said(strict) == b""


def test_a_slow_body(strict: tuple[str, int]) -> None:
    answer = said(strict, POST + b"Content-Length: 100\r\n\r\n", *[b" "] * 12, pause=0.05)
    assert answer.startswith(b"HTTP/1.1 408") and b"connection: close" in answer


def test_a_body_that_nobody_waits_for(strict: tuple[str, int]) -> None:
    """The request is refused by its path before its body has come, which then drips on."""
    head = b"POST /nowhere HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999\r\n\r\n"
    assert said(strict, head, *[b" "] * 40, pause=0.05).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize(
    "head",
    [
        b"GET /health HTTP/1.1\r\n" + b"".join(b"h%d: %s\r\n" % (i, b"x" * 100) for i in range(100)) + b"\r\n",
        b"GET /health HTTP/1.1\r\nh: " + b"x" * 100_000,
        b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\n\r\n",
    ],
    ids=["many", "one", "path"],
)
def test_large_heads(head: bytes, strict: tuple[str, int]) -> None:
    parts = [head[at : at + 1000] for at in range(0, len(head), 1000)]
    for pieces in ([head], parts):
        answer = said(strict, *pieces)
        assert answer.startswith(b"HTTP/1.1 431") or answer == b""  # closed with bytes unread, it may be lost


def test_what_is_no_http(strict: tuple[str, int]) -> None:
    head, _, body = said(strict, b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n").partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400") and json.loads(body)["error"]["message"] == "this is no request of HTTP"


def test_too_many_connections(strict: tuple[str, int]) -> None:
    url = f"http://{strict[0]}:{strict[1]}/health"
    held = [socket.create_connection(strict) for _ in range(6)]
    try:
        answer = said(strict)
        assert answer.startswith(b"HTTP/1.1 503") and b"retry-after: 1\r\n" in answer
    finally:
        for one in held:
            one.close()
    until = time.monotonic() + 10
    while time.monotonic() < until and httpx.get(url).status_code != 200:
        pass
    assert httpx.get(url).status_code == 200


def test_pipelined_requests_are_answered_in_order(strict: tuple[str, int]) -> None:
    ask = b"GET /%s HTTP/1.1\r\nHost: a\r\n%s\r\n"
    last = ask % (b"health", b"Connection: close\r\n")
    answer = said(strict, ask % (b"health", b"") + ask % (b"nowhere", b"") + last)
    assert re.findall(rb"HTTP/1.1 (\d+)", answer) == [b"200", b"404", b"200"]
