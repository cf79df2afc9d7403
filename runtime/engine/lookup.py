"""Guesses from the text itself: what followed the last time the same tokens were said.

For models without a layer for multi-token prediction. (Prompt lookup decoding, Saxena 2023.)
"""

from __future__ import annotations

from collections.abc import Sequence

LENGTHS = (4, 3, 2)
"""Of the runs of tokens that are looked for, the longest first; shorter ones repeat by chance."""


class PromptLookup:
    """Where each run of tokens in a growing text was seen last."""

    def __init__(self) -> None:
        self._after: dict[tuple[int, ...], int] = {}  # run -> where what follows it begins
        self._noted = 0

    def guess(self, tokens: Sequence[int], count: int) -> list[int]:
        """Up to `count` tokens that may follow; `tokens` are those of the last call and more behind them."""
        for end in range(self._noted + 1, len(tokens)):  # the run at the very end is the one that is looked for
            for length in LENGTHS:
                if end >= length:
                    self._after[tuple(tokens[end - length : end])] = end
        self._noted = max(len(tokens) - 1, self._noted)
        for length in LENGTHS:
            begin = self._after.get(tuple(tokens[-length:])) if len(tokens) >= length else None
            if begin is not None:
                return list(tokens[begin : begin + count])
        return []
