"""Guessing ahead: what is asked of the draft, and when it stops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from deepzig.runtime.speculate import Speculator
from deepzig.sampling import NO_TOKEN


class Draft:
    """Hidden states say which call they are of; logits have the token to be guessed in front."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self.tokens = list(tokens)
        self.calls: list[tuple[list[int], int, int, list[int]]] = []

    def __call__(self, tokens: Sequence[int], begin: int, hidden: Any, out_rows: Sequence[int]) -> Any:
        self.calls.append((list(tokens), begin, int(hidden[0, 0]), list(out_rows)))
        return np.array([[self.tokens.pop(0)]]) if out_rows else np.empty((0, 1)), np.full((1, 1), len(self.calls))


def likeliest(logits: Any) -> int:
    return int(logits[0, 0])


HIDDEN = np.full((2, 1), 70)


def test_a_guess_is_read_for_the_next() -> None:
    draft = Draft([31, 32, 33])
    speculator = Speculator(draft, likeliest)
    speculator.read([8, 9], 4, HIDDEN)
    assert speculator.guess([11, 12], 6, HIDDEN, 3) == [31, 32, 33]
    assert draft.calls == [([8, 9], 4, 70, []), ([11, 12], 6, 70, [1]), ([31], 8, 2, [0]), ([32], 9, 3, [0])]
    assert (speculator.guessed, speculator.right) == (3, 0)


def test_nothing_is_guessed_from_what_are_no_numbers() -> None:
    draft = Draft([31, NO_TOKEN, 33])
    speculator = Speculator(draft, likeliest)
    assert speculator.guess([11, 12], 6, HIDDEN, 3) == [31]
    assert speculator.guessed == 1 and len(draft.calls) == 2
