"""Limits by the minute, quotas, and what clients are told of them, under a clock of our own."""

from __future__ import annotations

import json
import math
import random
from copy import deepcopy
from pathlib import Path

import pytest

from deepzig.server.errors import ApiError
from deepzig.server.keys import Limits
from deepzig.server.ledgers import Account, Ledgers, told
from deepzig.server.quotas import Quotas
from deepzig.server.rates import Window


class Clock:
    """Seconds that pass when they are told to; noon of some day."""

    def __init__(self) -> None:
        self.now = 1000.5 * 86400

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledgers(clock: Clock) -> Ledgers:
    return Ledgers(Quotas(clock=clock), clock)


def account(ledgers: Ledgers, name: str = "alice", **limits: int) -> Account:
    return Account(ledgers, [(ledgers.of_key(name), Limits(**limits))])


def refusal(error: pytest.ExceptionInfo[ApiError]) -> tuple[int, str, str | None]:
    one = error.value
    return one.status, one.body["error"]["type"], (one.headers or {}).get("Retry-After")


def test_no_minute_has_more_than_the_limit() -> None:
    """Random amounts at random times, asked for whenever they may be taken: every span of 60 seconds is summed."""
    draw, window, now, limit = random.Random(4), Window(), 0.0, 97
    taken: list[tuple[float, int]] = []
    for _ in range(4000):
        now += draw.expovariate(3)
        amount = draw.randint(1, 9)
        wait = window.wait(now, amount, limit)
        if wait == 0:
            window.take(now, amount)
            taken.append((now, amount))
        else:  # a moment later is right, a moment sooner is too soon
            sooner, later = (deepcopy(window).wait(now + wait + d, amount, limit) for d in (-1e-6, 1e-6))
            assert later == 0 < sooner
    sums = [sum(amount for at, amount in taken[i:] if at < begin + 60) for i, (begin, _) in enumerate(taken)]
    assert max(sums) <= limit and max(sums) >= 0.99 * limit
    assert window.wait(now, limit + 1, limit) == math.inf


def test_what_turns_out_to_be_less_can_be_taken_again() -> None:
    window = Window()
    first, second = window.take(0, 50), window.take(10, 30)
    window.change(first, 7)
    assert (window.used(59.9), window.used(60), window.used(70)) == (37, 30, 0)
    window.change(second, 3)  # forgotten by now
    assert window.used(70) == 0 and window.reset(70) == 0


def test_requests_of_a_minute(ledgers: Ledgers, clock: Clock) -> None:
    for second in range(3):
        clock.now += second
        account(ledgers, requests_per_minute=3).open()
    with pytest.raises(ApiError) as error:
        account(ledgers, requests_per_minute=3).open()
    assert refusal(error) == (429, "requests", "57")
    assert error.value.body["error"]["message"] == "the limit of 3 requests a minute is reached; try again in 57 s"
    assert error.value.body["error"]["code"] == "rate_limit_exceeded"
    account(ledgers, "bob", requests_per_minute=3).open()
    clock.now += 57
    account(ledgers, requests_per_minute=3).open()


def test_requests_at_a_time(ledgers: Ledgers) -> None:
    one, other = (account(ledgers, concurrent=2) for _ in range(2))
    one.open()
    other.open()
    with pytest.raises(ApiError) as error:
        account(ledgers, concurrent=2).open()
    assert refusal(error) == (429, "requests", "1")
    one.close(0)
    one.close(0)
    account(ledgers, concurrent=2).open()
    with pytest.raises(ApiError):
        account(ledgers, concurrent=2).open()


def test_tokens_are_reserved_and_settled(ledgers: Ledgers, clock: Clock) -> None:
    one = account(ledgers, tokens_per_minute=100)
    one.open()
    one.reserve(50)
    one.reserve(40)
    other = account(ledgers, tokens_per_minute=100)
    other.open()
    with pytest.raises(ApiError) as error:
        other.reserve(11)
    assert refusal(error) == (429, "tokens", "60")
    assert other.headers()["x-ratelimit-remaining-tokens"] == "10"
    one.close(22)
    assert other.headers() == {
        "x-ratelimit-limit-tokens": "100", "x-ratelimit-remaining-tokens": "78", "x-ratelimit-reset-tokens": "1m0s",
    }  # fmt: skip
    other.reserve(78)
    with pytest.raises(ApiError):  # told before a prompt is looked at
        account(ledgers, tokens_per_minute=100).open()


def test_a_request_that_never_fits(ledgers: Ledgers) -> None:
    one = account(ledgers, tokens_per_minute=100)
    one.open()
    with pytest.raises(ApiError) as error:
        one.reserve(101)
    assert refusal(error) == (429, "tokens", None)
    assert error.value.headers == {"x-should-retry": "false"}
    assert error.value.body["error"]["message"] == (
        "the request may take 101 tokens, more than the 100 of a minute; send a shorter prompt, or a smaller max_tokens"
    )


def test_quotas(ledgers: Ledgers, clock: Clock) -> None:
    limits = {"tokens_per_day": 100, "tokens_in_all": 150}
    one = account(ledgers, **limits)
    one.open()
    one.reserve(90)
    one.close(80)
    one = account(ledgers, **limits)
    one.open()
    with pytest.raises(ApiError) as error:
        one.reserve(21)
    assert refusal(error) == (429, "insufficient_quota", str(43200))
    clock.now += 43200  # the next day
    with pytest.raises(ApiError) as error:
        one.reserve(71)
    assert refusal(error) == (429, "insufficient_quota", None)
    one.reserve(70)


def test_a_request_takes_of_its_key_and_its_address(ledgers: Ledgers) -> None:
    key, address = ledgers.of_key("alice"), ledgers.of_address("192.0.2.1")

    def both() -> Account:
        return Account(ledgers, [(key, Limits(requests_per_minute=5)), (address, Limits(requests_per_minute=2))])

    both().open()
    both().open()
    with pytest.raises(ApiError):
        both().open()
    assert key.requests.used(ledgers.clock()) == 2  # nothing is taken of one if the other refuses
    assert both().headers()["x-ratelimit-remaining-requests"] == "3"


def test_addresses_are_forgotten(ledgers: Ledgers, clock: Clock) -> None:
    for number in range(10_001):
        Account(ledgers, [(ledgers.of_address(str(number)), Limits())]).open()
        ledgers.of_address(str(number)).running = 0
    clock.now += 61
    busy = ledgers.of_address("busy")
    busy.running = 1
    for number in range(10_001):
        ledgers.of_address(f"other {number}")
    assert ledgers.of_address("busy") is busy and len(ledgers._ledgers) <= 10_002


def test_an_account_that_is_closed_reserves_nothing(ledgers: Ledgers) -> None:
    one = account(ledgers, tokens_per_minute=100)
    one.open()
    one.close(0)
    with pytest.raises(ApiError) as error:
        one.reserve(10)
    assert error.value.status == 499 and ledgers.of_key("alice").tokens.used(ledgers.clock()) == 0


def test_what_was_spent_is_kept(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "keys.json.spent"
    quotas = Quotas(path, clock)
    quotas.save()
    assert not path.exists() or json.loads(path.read_text()) == {}
    quotas.of("alice").add(quotas.today, 40)
    quotas.save()
    again = Quotas(path, clock).of("alice")
    assert (again.on(quotas.today), again.on(quotas.today + 1), again.ever) == (40, 0, 40)


def test_a_file_of_quotas_that_is_broken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "spent"
    path.write_text('{"alice": 3}')
    assert Quotas(path).of("alice").ever == 0 and "can't be read" in caplog.text
    gone = Quotas(tmp_path / "nowhere" / "spent")
    gone.of("alice").add(gone.today, 1)
    gone.save()
    assert "can't be written" in caplog.text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0ms"), (0.0201, "21ms"), (1.5, "1.5s"), (60, "1m0s"), (59.96, "1m0s"), (372.4, "6m12.4s")],
)
def test_times(seconds: float, text: str) -> None:
    assert told(seconds) == text
