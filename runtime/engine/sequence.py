"""A request while it is served: one sequence of tokens for each of its answers."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt

from deepzig.artifacts.manifest import Bounds
from deepzig.runtime.answer import Answer
from deepzig.runtime.guide import Guide
from deepzig.runtime.result import Piece
from deepzig.runtime.sampling import SamplingOptions

from .lookup import PromptLookup
from .reading import Reading

PREFILL, DECODE = "prefill", "decode"


@dataclass(eq=False)
class Request:
    """What was asked.

    Attributes:
        prompt: its tokens, one at least.
        options: how to answer.
        priority: requests with a lower number go first.
        salt: prompts with different ones share no pages.
        reading: what takes what the model makes of the prompt; then nothing is answered.
        deliver: told of the pieces of each answer by its number, in order; then of an error, or of None when all
            answers have ended. Called on the engine's thread; must not block.
        arrival: its place in the order of arrival.
        cancelled: nobody wants it any more.
        cached: tokens of the prompt that were found read.
        guessed: tokens that were guessed ahead.
        accepted: how many of them were right.
    """

    prompt: list[int]
    options: SamplingOptions
    priority: int = 0
    salt: Hashable = None
    reading: Reading | None = None
    deliver: Callable[[int, Piece | BaseException | None], None] = lambda *_: None
    arrival: int = 0
    cancelled: bool = False
    cached: int = 0
    guessed: int = 0
    accepted: int = 0


@dataclass(frozen=True)
class Stretch:
    """Consecutive rows of a sequence that one call shall read, and in which form."""

    begin: int
    end: int
    form: str


@dataclass(eq=False)
class Sequence:
    """One answer of a request, with the pages that it holds.

    Attributes:
        request: what it answers.
        index: which of its answers.
        answer: what was generated.
        key: of its random numbers, i32 [2].
        tokens: the prompt and what was generated.
        pages: that it holds; shared ones among them.
        read: how many tokens are in the cache.
        guesses: what may follow the last token; read with it, in one call.
        turn: the step in which it was last served.
        leader: the sequence whose prompt it waits for, since it has the same one.
        found: how many tokens of the prompt were in the cache already.
        drafts: its guesses come from the layer for multi-token prediction, which has to read all of it.
        looked_up: what of it repeats itself; for guesses without such a layer.
        guide: keeps the answer in a structure.
    """

    request: Request
    index: int
    answer: Answer
    key: npt.NDArray[Any]
    tokens: list[int]
    pages: list[int] = field(default_factory=list)
    read: int = 0
    guesses: list[int] = field(default_factory=list)
    turn: int = 0
    leader: Sequence | None = None
    found: int = 0
    drafts: bool = False
    looked_up: PromptLookup | None = None
    guide: Guide | None = None

    @property
    def rank(self) -> tuple[int, int, int]:
        """Its place among all sequences; the lowest is served first."""
        return self.request.priority, self.request.arrival, self.index

    @property
    def done(self) -> bool:
        """Whether nothing more is to be done for it."""
        read = self.request.reading is not None and self.read == self.prompt
        return read or self.answer.finish_reason is not None or self.request.cancelled

    @property
    def prompt(self) -> int:
        """Tokens of the prompt."""
        return len(self.request.prompt)

    def stretch(self, bounds: Bounds) -> Stretch:
        """What to read next.

        A prompt is cut at absolute multiples of the chunk, and the form follows from the cut, wherever reading
        starts; what was generated is always read by `decode`. So neither load, nor what was found read already, nor
        having to read again changes a bit.
        """
        if self.read >= self.prompt:
            return Stretch(self.read, min(len(self.tokens), self.read + bounds.decode_rows), DECODE)
        cut = self.read // bounds.chunk * bounds.chunk
        end = min(cut + bounds.chunk, self.prompt)
        return Stretch(self.read, end, PREFILL if end - cut > bounds.decode_rows else DECODE)

    def shareable(self, bounds: Bounds) -> int:
        """How many tokens of the prompt lie in whole pages that other prompts compute alike."""
        last = self.prompt // bounds.chunk * bounds.chunk
        alike = last if self.prompt - last <= bounds.decode_rows else self.prompt
        return alike // bounds.page_size * bounds.page_size

    def wants(self, bounds: Bounds) -> int:
        """How many tokens to guess after the last one."""
        room = self.answer.limit - len(self.answer.tokens) - 1
        return 0 if self.done else max(min(self.request.options.speculate, room, bounds.decode_rows - 1), 0)
