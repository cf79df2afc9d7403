"""An answer as it grows: where it ends, and what of its text may be shown."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from .result import END, Piece
from .sampling import SamplingOptions, TokenLogprob
from .text import Detokenizer, StopFinder


class Answer:
    """The tokens of one answer.

    Args:
        options: what ends it.
        ends: the model's end tokens.
        limit: the most tokens, at least 1.
        decode: token ids -> text.

    Attributes:
        tokens: what was generated, the end token not among them.
        limit: as given.
        ends: tokens that end it without being a part of it.
        finish_reason: why it ended: `stop` or `length`; None as long as it goes on.
    """

    def __init__(
        self, options: SamplingOptions, ends: Collection[int], limit: int, decode: Callable[[Sequence[int]], str]
    ) -> None:  # fmt: skip
        self.tokens: list[int] = []
        self.limit = limit
        self.finish_reason: str | None = None
        self.ends = frozenset(options.stop_token_ids) | (frozenset() if options.ignore_eos else frozenset(ends))
        self._least = options.min_tokens
        self._decode = decode
        self._texts, self._stops = Detokenizer(decode), StopFinder(options.stop)

    def too_short(self, more: int = 0) -> bool:
        """Whether no token may end it yet, with so many more than it has."""
        return len(self.tokens) + more < self._least

    def push(self, token: int, logprob: TokenLogprob | None = None, complete: bool = False) -> Piece:
        """Take the next token, and tell what may be shown since the last.

        Args:
            token: what was drawn.
            logprob: what is told of it.
            complete: the answer is complete with it.
        """
        if token in self.ends:
            self.finish_reason = "stop"
            return Piece(self._stops.last(self._texts.flush())[0], END, logprob, self.finish_reason)
        self.tokens.append(token)
        more = self._texts.push(token)
        text, found = self._stops.push(more)
        if self._stops.held and not more and not self._decode([token]):
            # It may mark where something else begins, such as a call: what was held back before belongs before it.
            text = self._stops.release()
        if not found and (complete or len(self.tokens) == self.limit):
            self.finish_reason = "stop" if complete else "length"
            tail, found = self._stops.last(self._texts.flush())
            text += tail
        if found:
            self.finish_reason = "stop"
        return Piece(text, token, logprob, self.finish_reason)
