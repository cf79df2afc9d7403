"""How tiles lie in shared memory."""

from __future__ import annotations

import pytest
from tvm.script import tirx as T
from tvm.sym import Analyzer

from deepzig.targets.gpu.tiles import BANKS, FOUR, turned
from deepzig.targets.gpu.units import UNITS


def place(row: int, word: int, words: int) -> int:
    """Where a word of a row is in an array of rows of so many words."""
    first = Analyzer().simplify(turned(T.int64(row), T.int64(word // FOUR), words))
    return row * words + int(first) + word % FOUR


@pytest.mark.parametrize("words", [4, 8, 16, 32, 64])
def test_each_word_has_its_place(words: int) -> None:
    places = {place(row, word, words) for row in range(24) for word in range(words)}
    assert places == set(range(24 * words))
    assert all(place(5, word, words) % FOUR == word % FOUR for word in range(words))


@pytest.mark.parametrize("words", [4, 8, 16, 32, 64])
def test_the_words_that_a_tensor_core_wants_are_in_all_banks(words: int) -> None:
    """Of each register: 8 rows of A or B times 4 words."""
    unit = UNITS["mma_bf16"]
    for first in range(0, words, 8):
        for lanes in zip(*(unit.b(T.int64(lane)) for lane in range(32)), strict=True):
            wanted = [(int(Analyzer().simplify(row)), int(Analyzer().simplify(word))) for row, word in lanes]
            banks = {place(row + 8, (first + word) % words, words) % BANKS for row, word in wanted}
            assert len(banks) == BANKS
