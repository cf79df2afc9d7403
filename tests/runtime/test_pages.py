"""Pages: who has which."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from deepzig.errors import DeepZigError
from deepzig.runtime.pages import PagePool, Sequence


def test_every_page_has_one_owner() -> None:
    rng = np.random.default_rng(0)
    pool, held = PagePool(23, 5), list[list[int]]()
    for _ in range(500):
        if held and rng.random() < 0.5:
            pool.give_back(held.pop(int(rng.integers(len(held)))))
        elif (count := int(rng.integers(0, 6))) <= pool.free:
            held.append(pool.take(count))
        pages = [page for pages in held for page in pages]
        assert len(set(pages)) == len(pages) == 23 - pool.free
        assert all(0 <= page < 23 for page in pages)


def test_all_or_none() -> None:
    pool = PagePool(3, 7)
    pool.take(2)
    with pytest.raises(DeepZigError) as caught:
        pool.take(2)
    assert str(caught.value) == (
        "the cache is full: 2 more pages are needed, 1 are free\n"
        "  at: cache of 21 tokens\n"
        "  fix: load the model with a larger cache_tokens, or ask for fewer max_tokens"
    )
    assert pool.free == 1 and pool.take(1) == [2]


def test_a_huge_pool_costs_nothing() -> None:
    pool = PagePool(10**15, 64)
    assert pool.free == 10**15 and pool.take(2) == [0, 1] and pool.tokens == 64 * 10**15


def test_a_sequence_grows_by_need_and_gives_back() -> None:
    pool = PagePool(5, 4)
    with Sequence(pool) as sequence:
        counts = []
        for tokens in (1, 4, 5, 3, 13):
            sequence.reserve(tokens)
            counts.append(len(sequence.pages))
        assert counts == [1, 1, 2, 2, 4]
        with pytest.raises(DeepZigError):
            sequence.reserve(21)
        assert len(sequence.pages) == 4
    assert pool.free == 5 and sequence.pages == []
    sequence.__exit__()
    assert pool.free == 5


def test_threads() -> None:
    pool = PagePool(64, 1)
    owner = [0] * 64
    clashes: list[int] = []

    def work(name: int) -> None:
        for _ in range(300):
            pages = pool.take(7)
            for page in pages:
                if owner[page]:
                    clashes.append(page)
                owner[page] = name
            for page in pages:
                if owner[page] != name:
                    clashes.append(page)
                owner[page] = 0
            pool.give_back(pages)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not clashes and pool.free == 64
