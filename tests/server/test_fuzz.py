"""Ten thousand requests that nobody means: none is answered by a 500, and nothing of them stays behind."""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Iterator

import httpx
import pytest
import uvicorn

from deepzig.runtime import Model
from deepzig.server import Access
from deepzig.server.keys import Keyring
from deepzig.server.limits import RequestLimits
from deepzig.server.protocol import ConnectionLimits

from .conftest import KEY, NAME, address_of, key_of, started
from .fuzz import request
from .test_http import idle

TURNS = 10


@pytest.fixture(scope="module")
def server(model: Model) -> Iterator[uvicorn.Server]:
    access = Access(Keyring([key_of(KEY)]), request=RequestLimits(answer_tokens=16, answers=8, body_seconds=0.1))
    with started({NAME: model}, access, ConnectionLimits(head_seconds=0.1)) as one:
        yield one


def sent(server: uvicorn.Server, data: bytes, clean: bool) -> bytes:
    """All that is answered, or where the request is no clean HTTP its beginning: the connection may stay open."""
    parts = []
    with socket.create_connection(server.servers[0].sockets[0].getsockname(), timeout=30) as connection:
        try:
            connection.sendall(data)
            while part := connection.recv(1 << 16):
                parts.append(part)
                if not clean:
                    break
        except (ConnectionResetError, BrokenPipeError):
            pass
    return b"".join(parts)


def fuzz(server: uvicorn.Server, model: Model, seeds: range) -> Counter[int]:
    statuses = Counter[int]()
    for seed in seeds:
        data, clean = request(seed)
        answer = sent(server, data, clean)
        status = int(answer[9:12]) if answer else 0
        assert 200 <= status < 500 or status == 503 or not (status or clean), (seed, data, answer)
        assert b"server_error" not in answer or status == 503, (seed, data, answer)
        statuses[status] += 1
    assert httpx.get(f"{address_of(server)}/health").json() == {"status": "ok"}
    assert idle(model) and model.pool.free == model.pool.count
    until = time.monotonic() + 10
    while server.server_state.tasks and time.monotonic() < until:
        time.sleep(0.01)
    assert not server.server_state.tasks
    return statuses


def test_some_requests(server: uvicorn.Server, model: Model) -> None:
    statuses = fuzz(server, model, range(150))
    assert statuses[200] > 20 and statuses[400] > 30


@pytest.mark.slow
@pytest.mark.parametrize("turn", range(TURNS))
def test_ten_thousand_requests(turn: int, server: uvicorn.Server, model: Model) -> None:
    each = 10_000 // TURNS
    fuzz(server, model, range(turn * each, (turn + 1) * each))
