"""What keys have spent of their quotas; kept in a file beside that of the keys, so that it outlives the server."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

log = logging.getLogger(__name__)

DAY = 86400


@dataclass
class Spent:
    """Tokens that a key has taken: on a day, counted from 1970 in UTC, and ever."""

    day: int = 0
    today: int = 0
    ever: int = 0

    def add(self, day: int, tokens: int) -> None:
        """Count tokens; fewer than none where less was taken than was reserved."""
        if day != self.day:
            self.day, self.today = day, 0
        self.today = max(self.today + tokens, 0)
        self.ever += tokens

    def on(self, day: int) -> int:
        """What was taken on a day."""
        return self.today if day == self.day else 0


class Quotas:
    """What all keys have spent, by their names.

    Args:
        path: where it is kept; without one it is forgotten with the process.
        clock: seconds since 1970.
    """

    def __init__(self, path: Path | None = None, clock: Callable[[], float] = time.time) -> None:
        self._path, self._clock = path, clock
        self._spent: dict[str, Spent] = {}
        self._saved = ""
        if path and path.exists():
            try:
                found = json.loads(path.read_text(encoding="utf-8"))
                self._spent = {name: Spent(**{k: int(v) for k, v in one.items()}) for name, one in found.items()}
            except (OSError, ValueError, TypeError, AttributeError) as error:
                log.error("what was spent of quotas is not known, %s can't be read: %s", path, error)

    @property
    def today(self) -> int:
        """The day, counted from 1970."""
        return int(self._clock() // DAY)

    @property
    def seconds_left(self) -> float:
        """Seconds until the next day."""
        return DAY - self._clock() % DAY

    def of(self, name: str) -> Spent:
        """What a key has spent."""
        return self._spent.setdefault(name, Spent())

    def save(self) -> None:
        """Write down what has changed; a disk that is full stops no answer."""
        if self._path is None:
            return
        text = json.dumps({name: asdict(one) for name, one in self._spent.items() if one.ever})
        if text == self._saved:
            return
        unfinished = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        try:
            unfinished.write_text(text, encoding="utf-8")
            unfinished.replace(self._path)
        except OSError as error:
            log.error("what was spent of quotas can't be written to %s: %s", self._path, error)
        else:
            self._saved = text
