"""Waking an event loop from the engine's thread: once for all tokens of a step, not once for each."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from typing import ClassVar
from weakref import WeakKeyDictionary, ref


class Bell:
    """Sets events of one event loop from another thread; those that come while it is being woken share the call."""

    _all: ClassVar[WeakKeyDictionary[asyncio.AbstractEventLoop, Bell]] = WeakKeyDictionary()

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = ref(loop)  # a loop that is forgotten shall be freed, and its bell with it
        self._due: deque[asyncio.Event] = deque()
        self._rung = False

    @classmethod
    def of(cls, loop: asyncio.AbstractEventLoop) -> Bell:
        """The bell of a loop; called on its thread."""
        return cls._all.setdefault(loop, cls(loop))

    def ring(self, event: asyncio.Event) -> None:
        """Have an event set soon; from any thread."""
        self._due.append(event)
        if self._rung:  # `_answer` has not begun yet, and finds the event
            return
        self._rung = True
        if loop := self._loop():
            with suppress(RuntimeError):  # it is closed: nobody listens
                loop.call_soon_threadsafe(self._answer)

    def _answer(self) -> None:
        self._rung = False
        while self._due:
            self._due.popleft().set()
