"""Guesses from what a text has repeated."""

from __future__ import annotations

import numpy as np

from deepzig.runtime.engine.lookup import LENGTHS, PromptLookup


def searched(tokens: list[int], count: int) -> list[int]:
    """What followed the last time that the longest possible end of the text was seen."""
    for length in LENGTHS:
        for begin in range(len(tokens) - length - 1, -1, -1):
            if tokens[begin : begin + length] == tokens[-length:]:
                return tokens[begin + length : begin + length + count]
    return []


def test_it_finds_what_a_search_finds() -> None:
    rng = np.random.default_rng(2)
    for letters in (2, 3, 9):
        tokens, lookup = rng.integers(0, letters, 5).tolist(), PromptLookup()
        for _ in range(60):
            count = int(rng.integers(0, 5))
            assert lookup.guess(tokens, count) == searched(tokens, count)
            tokens += rng.integers(0, letters, int(rng.integers(1, 4))).tolist()


def test_nothing_is_guessed_of_what_is_new() -> None:
    assert PromptLookup().guess([1, 2, 3, 4, 5], 3) == []
    assert PromptLookup().guess([1], 3) == PromptLookup().guess([], 3) == []
