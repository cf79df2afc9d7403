"""The radix tree of prompts: what is found, what is given up, and who holds what."""

from __future__ import annotations

import numpy as np
import pytest

from deepzig.errors import DeepZigError
from deepzig.runtime.engine.prefix import PrefixTree
from deepzig.runtime.pages import PagePool

SIZE = 3


@pytest.fixture
def pool() -> PagePool:
    return PagePool(12, SIZE)


@pytest.fixture
def tree(pool: PagePool) -> PrefixTree:
    return PrefixTree(pool)


def keep(
    tree: PrefixTree, pool: PagePool, tokens: list[int], drafted: bool = False, salt: str | None = None
) -> list[int]:
    """Insert a prompt with pages of its own, then give those back."""
    pages = pool.take(len(tokens) // SIZE)
    tree.insert(tokens, pages, drafted, salt)
    pool.give_back(pages)
    return pages


def test_common_pages_are_found(tree: PrefixTree, pool: PagePool) -> None:
    first = keep(tree, pool, [1, 2, 3, 4, 5, 6, 7, 8, 9])
    second = keep(tree, pool, [1, 2, 3, 4, 5, 6, 0, 8, 9])
    assert second[:2] == first[:2] and second[2] != first[2] and len(tree) == 4
    assert tree.match([1, 2, 3, 4, 5, 6, 0, 8, 9, 7, 7], 0, 11, False) == second
    assert tree.match([1, 2, 3, 4, 5, 6, 7, 8, 9], 0, 8, False) == first[:2]
    assert tree.match([1, 2, 3, 4, 5, 6, 7, 8, 9], SIZE, 9, False) == first[1:]
    assert tree.match([1, 2, 4], 0, 3, False) == tree.match([], 0, 0, False) == []
    assert [pool.holders(p) for p in (*first, second[2])] == [3, 4, 2, 2]
    nodes = tree.kept()
    assert {n.page for n in nodes} == {*first, second[2]} and pool.holders(second[2]) == 3
    assert all(n.parent is None or nodes.index(n.parent) < i for i, n in enumerate(nodes)) and not tree.kept("a")


def test_salts_and_drafts_keep_apart(tree: PrefixTree, pool: PagePool) -> None:
    tokens = [1, 2, 3, 4, 5, 6]
    plain = keep(tree, pool, tokens)
    salted = keep(tree, pool, tokens, salt="a")
    assert tree.match(tokens, 0, 6, False, "a") == salted != plain
    assert tree.match(tokens, 0, 6, True) == []
    drafted = keep(tree, pool, tokens, drafted=True)  # has more in it, and takes the place
    assert tree.match(tokens, 0, 6, True) == tree.match(tokens, 0, 6, False) == drafted
    assert not any(pool.holders(page) for page in plain if page not in drafted)


def test_the_least_used_goes_first_and_ends_before_beginnings(tree: PrefixTree, pool: PagePool) -> None:
    old = keep(tree, pool, [1, 2, 3, 4, 5, 6, 7, 8, 9])
    new = keep(tree, pool, [1, 2, 3, 11, 12, 13])
    other = keep(tree, pool, [20, 21, 22])
    assert pool.free == pool.count
    held = tree.match([20, 21, 22], 0, 3, False)
    assert pool.free == 11
    taken = pool.take(pool.count - len(tree) + 2)  # two more than nobody has
    assert set(taken) >= {old[1], old[2]} and len(tree) == 3
    assert tree.match([1, 2, 3, 11, 12, 13], 0, 6, False) == new
    with pytest.raises(DeepZigError):
        pool.take(1)
    pool.give_back(new)
    assert set(pool.take(2)) == set(new) and len(tree) == 1
    pool.give_back(held)
    assert pool.take(1) == other and len(tree) == 0


def test_random_use_loses_nothing() -> None:
    rng = np.random.default_rng(3)
    pool = PagePool(40, SIZE)
    tree = PrefixTree(pool)
    held: list[list[int]] = []
    for _ in range(800):
        tokens = rng.integers(0, 2, SIZE * int(rng.integers(1, 6))).tolist()
        drafted = bool(rng.random() < 0.3)
        found = tree.match(tokens, 0, len(tokens), drafted)
        rest = len(tokens) // SIZE - len(found)
        if rest > pool.free:
            pool.give_back(found)
        else:
            pages = [*found, *pool.take(rest)]
            tree.insert(tokens, pages, drafted)
            held.append(pages)
        while held and (pool.free < 6 or rng.random() < 0.3):
            pool.give_back(held.pop(int(rng.integers(len(held)))))
    for pages in held:
        pool.give_back(pages)
    assert pool.free == pool.count
    tree.clear()
    assert len(tree) == 0 and not any(pool.holders(page) for page in range(pool.count))
    assert sorted(pool.take(pool.count)) == list(range(pool.count))
