"""What callers have taken of their limits, and whether they may take more."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from .errors import ApiError
from .keys import Limits
from .quotas import Quotas, Spent
from .rates import Taking, Window

MOST_IDLE = 10_000
"""Ledgers that are kept before those are dropped that hold nothing."""

KINDS = ("requests", "tokens")
"""What limits by the minute count."""

HEADERS = {kind: tuple(f"x-ratelimit-{what}-{kind}" for what in ("limit", "remaining", "reset")) for kind in KINDS}
"""What tells of them, as in OpenAI's API."""

QUOTA = "insufficient_quota"


@dataclass
class Ledger:
    """What one caller, a key or an address, has taken.

    Attributes:
        spent: of its quotas; addresses have none.
        requests: of the last minute.
        tokens: of the last minute.
        running: requests under way.
    """

    spent: Spent | None = None
    requests: Window = field(default_factory=Window)
    tokens: Window = field(default_factory=Window)
    running: int = 0


class Ledgers:
    """The ledgers of all callers.

    Args:
        quotas: what keys have spent.
        clock: seconds, of any beginning.
    """

    def __init__(self, quotas: Quotas | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.quotas, self.clock = quotas or Quotas(), clock
        self.lock = threading.RLock()
        self._ledgers: dict[str, Ledger] = {}

    def of_key(self, name: str) -> Ledger:
        """The ledger of a key."""
        return self._ledgers.setdefault(f"key {name}", Ledger(self.quotas.of(name)))

    def of_address(self, address: str) -> Ledger:
        """The ledger of an address."""
        if len(self._ledgers) > MOST_IDLE:
            now = self.clock()
            self._ledgers = {name: one for name, one in self._ledgers.items() if one.running or one.requests.used(now)}
        return self._ledgers.setdefault(f"address {address}", Ledger())


class Account:
    """What one request takes of the limits of those who have asked; safe to use from several threads.

    Args:
        ledgers: of all callers.
        callers: the ledgers of this one, its key's before its address's, each with its limits.
    """

    def __init__(self, ledgers: Ledgers, callers: list[tuple[Ledger, Limits]]) -> None:
        self._ledgers, self._callers = ledgers, callers
        self._takings: list[Taking] = []
        self._reserved = 0
        self._open = False

    def open(self) -> None:
        """Take a request.

        Raises:
            ApiError: a limit is reached (429); then nothing is taken.
        """
        with self._ledgers.lock:
            now = self._ledgers.clock()
            for ledger, limits in self._callers:
                if limits.concurrent and ledger.running >= limits.concurrent:
                    raise _refused("requests", f"{limits.concurrent} requests are under way already", 1)
                if limit := limits.requests_per_minute:
                    _check("requests", limit, ledger.requests.wait(now, 1, limit))
            self._check_tokens(now, 1)  # who has none left is told before the prompt is looked at
            for ledger, _ in self._callers:
                ledger.requests.take(now, 1)
                ledger.running += 1
            self._open = True

    def reserve(self, tokens: int) -> None:
        """Take tokens, on top of what is taken already: all that a request may come to need.

        Raises:
            ApiError: a limit is reached (429); then nothing more is taken.
        """
        with self._ledgers.lock:
            if not self._open:
                raise ApiError(499, "the request has ended")
            now = self._ledgers.clock()
            self._check_tokens(now, tokens)
            if not self._takings:
                self._takings = [ledger.tokens.take(now, 0) for ledger, _ in self._callers]
            self._set(self._reserved + tokens)

    def close(self, used: int) -> None:
        """The request has ended, and has used so many tokens."""
        with self._ledgers.lock:
            self._set(used)
            for ledger, _ in self._callers if self._open else ():
                ledger.running -= 1
            self._open = False

    def _set(self, tokens: int) -> None:
        """Count so many tokens instead of those that are reserved."""
        for (ledger, _), taking in zip(self._callers, self._takings, strict=False):
            ledger.tokens.change(taking, tokens)
            if ledger.spent:
                ledger.spent.add(self._ledgers.quotas.today, tokens - self._reserved)
        self._reserved = tokens

    def _check_tokens(self, now: float, tokens: int) -> None:
        quotas = self._ledgers.quotas
        for ledger, limits in self._callers:
            if limit := limits.tokens_per_minute:
                _check("tokens", limit, ledger.tokens.wait(now, tokens, limit), tokens)
            if not ledger.spent:
                continue
            if limits.tokens_per_day and ledger.spent.on(quotas.today) + tokens > limits.tokens_per_day:
                what = f"the quota of {limits.tokens_per_day} tokens a day has no {tokens} left"
                raise _refused(QUOTA, what, quotas.seconds_left)
            if limits.tokens_in_all and ledger.spent.ever + tokens > limits.tokens_in_all:
                what = f"the quota of {limits.tokens_in_all} tokens has no {tokens} left"
                raise _refused(QUOTA, what, math.inf)

    def headers(self) -> dict[str, str]:
        """What is left of the limits by the minute, as OpenAI's API tells it: of the key's, or else the address's."""
        headers: dict[str, str] = {}
        with self._ledgers.lock:
            now = self._ledgers.clock()
            for kind in KINDS:
                for ledger, limits in reversed(self._callers):
                    if limit := getattr(limits, f"{kind}_per_minute"):
                        window: Window = getattr(ledger, kind)
                        left = max(limit - window.used(now), 0)
                        values = (str(limit), str(left), told(window.reset(now)))
                        headers.update(zip(HEADERS[kind], values, strict=True))
        return headers


def told(seconds: float) -> str:
    """A time as OpenAI's headers have it: `20ms`, `1.5s`, `6m0s`."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, tenths = divmod(math.ceil(seconds * 10), 600)
    return f"{minutes}m{tenths / 10:g}s" if minutes else f"{tenths / 10:g}s"


def _check(kind: str, limit: int, wait: float, amount: int = 1) -> None:
    if math.isinf(wait):
        raise _refused(kind, f"the request may take {amount} {kind}, more than the {limit} of a minute", wait)
    if wait:
        raise _refused(kind, f"the limit of {limit} {kind} a minute is reached", wait)


def _refused(kind: str, what: str, wait: float) -> ApiError:
    """An answer of OpenAI's for limits; clients retry after the time that it names, and not where none helps."""
    code = QUOTA if kind == QUOTA else "rate_limit_exceeded"
    if math.isinf(wait):
        hint = "ask for more" if kind == QUOTA else "send a shorter prompt, or a smaller max_tokens"
        return ApiError(429, f"{what}; {hint}", kind, code=code, headers={"x-should-retry": "false"})
    seconds = math.ceil(wait)
    return ApiError(429, f"{what}; try again in {seconds} s", kind, code=code, headers={"Retry-After": str(seconds)})
