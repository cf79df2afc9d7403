"""How much was taken in the last minute, to the request and to the token."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

MINUTE = 60.0


@dataclass
class Taking:
    """What was taken at one time, in seconds of the clock."""

    at: float
    amount: int


class Window:
    """A sum over the last 60 seconds.

    It holds exactly: no 60 seconds, wherever they begin, have more than the limit. A bucket that fills again would let
    twice the limit through in its first minute.
    """

    def __init__(self) -> None:
        self._takings: deque[Taking] = deque()
        self._sum = 0

    def used(self, now: float) -> int:
        """What was taken in the 60 seconds before `now`."""
        while self._takings and self._takings[0].at <= now - MINUTE:
            self._sum -= self._takings.popleft().amount
        return self._sum

    def take(self, now: float, amount: int) -> Taking:
        """Take so much; whether it may be is for the caller to ask before."""
        taking = Taking(now, amount)
        self._takings.append(taking)
        self._sum += amount
        return taking

    def change(self, taking: Taking, amount: int) -> None:
        """What was taken turned out to be another amount."""
        if self._takings and self._takings[0].at <= taking.at:  # else it is forgotten
            self._sum += amount - taking.amount
        taking.amount = amount

    def wait(self, now: float, amount: int, limit: int) -> float:
        """Seconds until so much may be taken, 0 if it may be now; never, if it is more than the limit."""
        if amount > limit:
            return math.inf
        over, seconds = self.used(now) + amount - limit, 0.0
        for taking in self._takings:
            if over <= 0:
                break
            over -= taking.amount
            seconds = taking.at + MINUTE - now
        return seconds

    def reset(self, now: float) -> float:
        """Seconds until nothing of it is left."""
        self.used(now)
        return self._takings[-1].at + MINUTE - now if self._takings else 0.0
