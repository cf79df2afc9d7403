"""A request as its caller sees it: pieces as they come, in a thread or in an event loop."""

from __future__ import annotations

import asyncio
import queue
import time
from collections.abc import AsyncIterator, Callable, Iterator

from deepzig.runtime.result import END, Choice, Piece, Result

from .bell import Bell
from .sequence import Request

Event = tuple[int, Piece | BaseException | None]


class Generation:
    """The answers to a request, while they are made; given by `Engine.submit`.

    Iterate over it, with `for` or with `async for`, for pieces with the numbers of their answers; or take the `result`.
    As a context manager it makes sure that nothing goes on behind: what has not ended by then is cancelled.

    Attributes:
        request: what was asked.
        made: tokens that were made, of all answers.
        asked_at: when it was asked, in seconds of `time.perf_counter`.
        first_at: when its first token came, if one has.
        last_at: when its last one came.
    """

    def __init__(self, request: Request, cancel: Callable[[Request], None]) -> None:
        self.request = request
        self._cancel = cancel
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._wake: Callable[[], None] | None = None
        self._ended = False  # as far as events were taken
        self._over = False
        self.made = 0
        self.asked_at = time.perf_counter()
        self.first_at: float | None = None
        self.last_at = self.asked_at
        request.deliver = self._put

    def _put(self, index: int, event: Piece | BaseException | None) -> None:
        if not isinstance(event, Piece):
            self._over = True
        elif event.token_id != END:
            self.made += 1
            self.last_at = time.perf_counter()
            if self.first_at is None:
                self.first_at = self.last_at
        self._events.put((index, event))
        if self._wake:
            self._wake()

    def cancel(self) -> None:
        """Make nothing more of it; its pages are free soon after. Harmless when it has ended."""
        if not self._over:
            self._cancel(self.request)

    def __enter__(self) -> Generation:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._ended:
            self.cancel()
            if self._wake is None:  # no event loop: wait, so that its pages are free again
                while not self._taken(*self._events.get()):
                    pass

    def _taken(self, _: int, event: Piece | BaseException | None) -> bool:
        """Whether an event is the last one."""
        self._ended = not isinstance(event, Piece)
        return self._ended

    def __iter__(self) -> Iterator[tuple[int, Piece]]:
        """(number of the answer, piece), until all answers have ended.

        Raises:
            DeepZigError: the model failed.
        """
        while not self._ended:
            index, event = self._events.get()
            self._taken(index, event)
            if isinstance(event, BaseException):
                raise event
            if event is not None:
                yield index, event

    async def __aiter__(self) -> AsyncIterator[tuple[int, Piece]]:
        """As `__iter__`, without blocking the event loop."""
        come = asyncio.Event()
        bell = Bell.of(asyncio.get_running_loop())
        self._wake = lambda: bell.ring(come)
        while not self._ended:
            try:
                index, event = self._events.get_nowait()
            except queue.Empty:
                await come.wait()
                come.clear()
                continue
            self._taken(index, event)
            if isinstance(event, BaseException):
                raise event
            if event is not None:
                yield index, event

    def pieces(self) -> Iterator[Piece]:
        """The pieces of the only answer; whoever leaves early cancels."""
        with self:
            for _, piece in self:
                yield piece

    async def apieces(self) -> AsyncIterator[Piece]:
        """As `pieces`, without blocking the event loop."""
        with self:
            async for _, piece in self:
                yield piece

    def result(self) -> Result:
        """Wait for all answers.

        Raises:
            DeepZigError: the model failed.
        """
        return self.result_of(list(self))

    async def aresult(self) -> Result:
        """As `result`, without blocking the event loop."""
        return self.result_of([told async for told in self])

    def wait(self) -> None:
        """Wait for the end of a request without answers.

        Raises:
            DeepZigError: the model failed.
        """
        for _ in self:
            pass

    async def await_end(self) -> None:
        """As `wait`, without blocking the event loop."""
        async for _ in self:
            pass

    def result_of(self, told: list[tuple[int, Piece]]) -> Result:
        """The result of an ended request, given all that was told."""
        request = self.request
        answers = [[piece for index, piece in told if index == i] for i in range(request.options.n)]
        choices = tuple(_choice(pieces, request.options.logprobs) for pieces in answers)
        return Result(
            **vars(choices[0]), prompt_tokens=len(request.prompt), choices=choices, cached_tokens=request.cached,
            guessed_tokens=request.guessed, accepted_tokens=request.accepted,
        )  # fmt: skip


def _choice(told: list[Piece], logprobs: bool) -> Choice:
    shown = [piece for piece in told if piece.token_id != END]
    return Choice(
        text="".join(piece.text for piece in told),
        token_ids=tuple(piece.token_id for piece in shown),
        finish_reason=told[-1].finish_reason or "length",
        logprobs=tuple(piece.logprob for piece in shown if piece.logprob) if logprobs else None,
    )
