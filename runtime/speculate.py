"""Guessing tokens ahead with the layer for multi-token prediction (DeepSeek-V3 report, section 2.2).

Guesses never change an answer. The model reads them behind the last token, as rows of one call; from its logits tokens
are drawn as ever, and the first that differs from its guess ends the use of that call. What the rows behind it wrote to
the cache is written over by the next call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]

Draft = Callable[[Sequence[int], int, F32, Sequence[int]], tuple[F32, F32]]
"""(token after each row, position of the first row, hidden states [n, hidden], wanted rows) -> logits, hidden."""


class Speculator:
    """Guesses for one answer at a time, and how they fared.

    Attributes:
        guessed: tokens that were guessed.
        right: how many of them the model then drew.
    """

    def __init__(self, draft: Draft) -> None:
        self._draft = draft
        self.guessed = 0
        self.right = 0

    def read(self, tokens: Sequence[int], begin: int, hidden: F32) -> None:
        """Take note of rows that need no guess: the token after each, the position of the first, hidden states."""
        self._draft(tokens, begin, hidden, [])

    def guess(self, tokens: Sequence[int], begin: int, hidden: F32, count: int) -> list[int]:
        """The likeliest tokens after the last one, `count` of them; the other arguments are as in `read`."""
        guesses: list[int] = []
        while len(guesses) < count:
            logits, hidden = self._draft(tokens, begin, hidden, [len(tokens) - 1])
            begin += len(tokens)
            tokens = [int(logits[0].argmax())]
            guesses += tokens
        self.guessed += len(guesses)
        return guesses
