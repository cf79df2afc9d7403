"""Keys and limits as clients meet them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from deepzig.runtime import Model
from deepzig.server import Access
from deepzig.server.addresses import parse_networks
from deepzig.server.health import DRAINING, LOADING, Health
from deepzig.server.keys import Keyring, Limits, write_keys
from deepzig.server.ledgers import HEADERS
from deepzig.server.limits import RequestLimits

from .conftest import KEY, NAME, key_of, serving
from .test_websocket import connected, send, told

CHAT = "/v1/chat/completions"
BODY: dict[str, Any] = {"model": NAME, "messages": [{"role": "user", "content": "Spell lamp."}], "max_tokens": 3}
AUTH = {"Authorization": f"Bearer {KEY}"}


def test_a_revoked_key(model: Model, tmp_path: Path) -> None:
    write_keys(tmp_path / "keys", [key_of(KEY), key_of("other")])
    ring = Keyring(path=tmp_path / "keys")
    with serving({NAME: model}, Access(ring)) as url, OpenAI(base_url=f"{url}/v1", api_key=KEY) as client:
        assert client.models.list().data
        write_keys(tmp_path / "keys", [key_of("other")])
        ring.reload()
        with pytest.raises(openai.AuthenticationError):
            client.models.list()


def test_limits_under_50_clients(model: Model) -> None:
    """As many pass as may, to the request, and what they answer adds up to no more than the tokens of a minute."""
    limits = {"requests_per_minute": 97}
    with serving({NAME: model}, Access(Keyring([key_of(KEY, **limits)]))) as url:

        async def ask() -> list[httpx.Response]:
            async with httpx.AsyncClient(base_url=url, headers=AUTH, timeout=60) as client:
                return [await client.get("/v1/models") for _ in range(4)]

        async def all_clients() -> list[list[httpx.Response]]:
            return await asyncio.gather(*(ask() for _ in range(50)))

        answers = [answer for one in asyncio.run(all_clients()) for answer in one]
    statuses = [answer.status_code for answer in answers]
    assert (statuses.count(200), statuses.count(429)) == (97, 103)
    left = sorted(int(one.headers["x-ratelimit-remaining-requests"]) for one in answers if one.status_code == 200)
    assert left == list(range(97))
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert 0 < int(refused.headers["retry-after"]) <= 60 and refused.json()["error"]["type"] == "requests"


def test_tokens_under_50_clients(model: Model) -> None:
    limit = 600
    access = Access(Keyring([key_of(KEY, tokens_per_minute=limit)]))
    with serving({NAME: model}, access) as url:

        async def ask(client: httpx.AsyncClient) -> int:
            answer = await client.post(CHAT, json={**BODY, "ignore_eos": True}, headers=AUTH)
            assert answer.status_code in (200, 429)
            return answer.json()["usage"]["total_tokens"] if answer.status_code == 200 else 0

        async def all_clients() -> list[int]:
            async with httpx.AsyncClient(base_url=url, timeout=60, limits=httpx.Limits(max_connections=50)) as client:
                return await asyncio.gather(*(ask(client) for _ in range(200)))

        used = asyncio.run(all_clients())
    cost = max(used)
    assert limit - cost < sum(used) <= limit


def test_what_is_left_is_told_as_openai_does(model: Model) -> None:
    access = Access(Keyring([key_of(KEY, requests_per_minute=9, tokens_per_minute=1000)]))
    with serving({NAME: model}, access) as url, httpx.Client(base_url=url, headers=AUTH, timeout=30) as http:
        first = http.post(CHAT, json=BODY)
        used = first.json()["usage"]["total_tokens"]
        second = http.post(CHAT, json={**BODY, "stream": True})
        third = http.get("/v1/models")
    assert set(third.headers) >= {*HEADERS["requests"], *HEADERS["tokens"]}
    assert third.headers["x-ratelimit-limit-tokens"] == "1000"
    assert third.headers["x-ratelimit-remaining-tokens"] == str(1000 - 2 * used)  # a stream's are settled too
    assert second.headers["x-ratelimit-remaining-requests"] == "7"
    assert third.headers["x-ratelimit-reset-requests"] == "1m0s"


def test_a_stream_that_is_left_pays_for_what_was_made(model: Model) -> None:
    access = Access(Keyring([key_of(KEY, tokens_per_minute=20_000)]))
    body = {**BODY, "max_tokens": 900, "n": 16, "ignore_eos": True, "stream": True}
    with serving({NAME: model}, access) as url, httpx.Client(base_url=url, headers=AUTH, timeout=30) as http:
        with http.stream("POST", CHAT, json=body) as answer:
            next(answer.iter_lines())
            reserved = 20_000 - int(answer.headers["x-ratelimit-remaining-tokens"])
        left = 0
        while left <= 20_000 - reserved:
            left = int(http.get("/v1/models").headers["x-ratelimit-remaining-tokens"])
    assert 900 * 16 < reserved < 900 * 16 + 100 and left < 20_000


def test_too_much_at_a_time(model: Model) -> None:
    access = Access(Keyring([key_of(KEY, concurrent=1)]))
    with serving({NAME: model}, access) as url, httpx.Client(base_url=url, headers=AUTH, timeout=30) as http:
        body = {**BODY, "max_tokens": 900, "n": 16, "ignore_eos": True, "stream": True}
        with http.stream("POST", CHAT, json=body) as answer:
            lines = answer.iter_lines()  # an iterator that is dropped closes the connection
            assert next(lines)
            assert httpx.get(f"{url}/v1/models", headers=AUTH).status_code == 429
        while httpx.get(f"{url}/v1/models", headers=AUTH).status_code == 429:
            pass


def test_addresses_behind_a_proxy(model: Model) -> None:
    access = Access(address=Limits(requests_per_minute=2), proxies=parse_networks(["127.0.0.1"]))
    with serving({NAME: model}, access) as url, httpx.Client(base_url=url) as http:
        statuses = [
            http.get("/v1/models", headers={"x-forwarded-for": f"192.0.2.{last}"}).status_code
            for last in (1, 1, 1, 2, 2, 1)
        ]
    assert statuses == [200, 200, 429, 200, 200, 429]


def test_who_guesses_keys_is_held_up(model: Model) -> None:
    access = Access(Keyring([key_of(KEY)]), address=Limits(requests_per_minute=3))
    with serving({NAME: model}, access) as url:
        guesses = [httpx.get(f"{url}/v1/models", headers={"Authorization": f"Bearer {i}"}) for i in range(5)]
    assert [guess.status_code for guess in guesses] == [401, 401, 401, 429, 429]


def test_limits_hold_for_a_web_socket(model: Model) -> None:
    access = Access(Keyring([key_of(KEY, requests_per_minute=3)]))
    with serving({NAME: model}, access) as url, connected(url) as line:  # which takes the first
        for number in range(3):
            send(line, number, {**BODY, "stream_options": {"include_usage": True}})
        ends = {}
        while len(ends) < 3:
            event = told(line)
            if event["event"] != "token":
                ends[event["id"]] = event
    refused = [event for event in ends.values() if event["event"] == "error"]
    assert [(one["status"], one["error"]["type"]) for one in refused] == [(429, "requests")]
    assert int(refused[0]["retry-after"]) > 0


@pytest.mark.parametrize(
    ("body", "message", "param"),
    [
        ({"max_tokens": 9}, "an answer may have 8 tokens, not 9", "max_tokens"),
        ({"n": 5}, "the request may have 4 answers, not 5", "n"),
        ({"messages": [{"role": "user", "content": "a " * 300}]}, "the prompt may have 100 tokens, not ", "prompt"),
    ],
)
def test_requests_that_ask_for_too_much(body: dict[str, Any], message: str, param: str, model: Model) -> None:
    access = Access(request=RequestLimits(prompt_tokens=100, answer_tokens=8, answers=4))
    with serving({NAME: model}, access) as url:
        answer = httpx.post(f"{url}{CHAT}", json={**BODY, **body})
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert error["message"].startswith(message) and (error["param"], error["code"]) == (param, "limit_exceeded")


def test_answers_are_counted_over_all_prompts_and_have_a_limit_by_default(model: Model) -> None:
    access = Access(request=RequestLimits(answer_tokens=8, answers=4))
    body = {"model": NAME, "prompt": ["a", "b", "c"], "n": 2, "ignore_eos": True, "max_tokens": 2}
    with serving({NAME: model}, access) as url, httpx.Client(base_url=url, timeout=30) as http:
        assert http.post("/v1/completions", json=body).json()["error"]["param"] == "n"
        answer = http.post(CHAT, json={**BODY, "max_tokens": None, "ignore_eos": True})
        assert answer.json()["usage"]["completion_tokens"] == 8
    assert model.engine.stats().running + model.engine.stats().waiting == 0


@pytest.mark.parametrize("status", [LOADING, DRAINING])
def test_while_it_loads_or_drains(status: str, model: Model) -> None:
    with serving({}, Access(), health=Health(status)) as url:
        health, asked = httpx.get(f"{url}/health"), httpx.post(f"{url}{CHAT}", json=BODY)
    assert (health.status_code, health.json()) == (503, {"status": status})
    assert asked.status_code == 503 and int(asked.headers["retry-after"]) > 0
    assert asked.json()["error"] == {
        "message": f"the server is {status}", "type": "server_error", "param": None, "code": status,
    }  # fmt: skip


def test_a_time_limit(model: Model) -> None:
    access = Access(request=RequestLimits(seconds=0.2))
    body = {**BODY, "max_tokens": 900, "n": 8, "ignore_eos": True}
    with serving({NAME: model}, access) as url, httpx.Client(base_url=url, timeout=30) as http:
        whole = http.post(CHAT, json=body)
        stream = http.post(CHAT, json={**body, "stream": True})
    assert (whole.status_code, whole.headers["x-should-retry"]) == (408, "false")
    assert whole.json()["error"]["code"] == "timeout"
    assert stream.status_code == 200
    assert stream.text.split("data: ")[-1].startswith('{"error":{"message":"the answer took more than 0.2 s"')


def test_pages_of_other_origins(model: Model) -> None:
    ring = Keyring([key_of(KEY)])
    with serving({NAME: model}, Access(ring), origins=["https://chat.example"]) as url:
        asked = {"origin": "https://chat.example", "access-control-request-method": "POST"}
        preflight = httpx.options(f"{url}{CHAT}", headers={**asked, "access-control-request-headers": "authorization"})
        refused = httpx.get(f"{url}/v1/models", headers={"origin": "https://chat.example"})
        foreign = httpx.get(f"{url}/v1/models", headers={"origin": "https://evil.example", **AUTH})
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == "https://chat.example"
    assert refused.status_code == 401  # and the page may read why
    assert refused.headers["access-control-allow-origin"] == "https://chat.example"
    assert "x-request-id" in refused.headers["access-control-expose-headers"]
    assert "access-control-allow-origin" not in foreign.headers


def test_without_an_allow_list_no_page_may_read(model: Model) -> None:
    with serving({NAME: model}, Access()) as url:
        answer = httpx.get(f"{url}/v1/models", headers={"origin": "https://chat.example"})
    assert not [name for name in answer.headers if name.startswith("access-control")]
