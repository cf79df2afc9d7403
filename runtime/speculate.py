"""Guessing tokens ahead with the layer for multi-token prediction (DeepSeek-V3 report, section 2.2).

Guesses never change an answer. The model reads them behind the last token, as rows of one call; from its logits tokens
are drawn as ever, and the first that differs from its guess ends the use of that call. What the rows behind it wrote to
the cache is written over by the next call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from deepzig.sampling import NO_TOKEN

from .tensors import Tensor

Draft = Callable[[Sequence[int], int, Tensor, Sequence[int]], tuple[Tensor, Tensor]]
"""(token after each row, position of the first row, hidden states [n, hidden], wanted rows) -> logits, hidden."""

Likeliest = Callable[[Tensor], int]
"""One row of logits -> the likeliest token; NO_TOKEN if they are no numbers."""


class Speculator:
    """Guesses for one answer at a time, and how they fared.

    Attributes:
        guessed: tokens that were guessed.
        right: how many of them the model then drew.
    """

    def __init__(self, draft: Draft, likeliest: Likeliest) -> None:
        self._draft, self._likeliest = draft, likeliest
        self.guessed = 0
        self.right = 0

    def read(self, tokens: Sequence[int], begin: int, hidden: Tensor) -> None:
        """Take note of rows that need no guess: the token after each, the position of the first, hidden states."""
        self._draft(tokens, begin, hidden, [])

    def guess(self, tokens: Sequence[int], begin: int, hidden: Tensor, count: int) -> list[int]:
        """The likeliest tokens after the last one, `count` of them; the other arguments are as in `read`."""
        guesses: list[int] = []
        while len(guesses) < count:
            logits, hidden = self._draft(tokens, begin, hidden, [len(tokens) - 1])
            begin += len(tokens)
            tokens = [self._likeliest(logits)]
            if tokens == [NO_TOKEN]:
                break
            guesses += tokens
        self.guessed += len(guesses)
        return guesses
