"""The sampling kernel of GPUs against its meaning."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from deepzig.sampling import NO_TOKEN, sample_tokens
from deepzig.targets.gpu.choice import KEPT
from deepzig.targets.gpu.sample import sample

from ..test_sample import options
from .conftest import KINDS

ROWS = {1: 20, 17: 300, 515: 150, 5003: 40}
"""Vocabulary -> rows that are drawn from."""

pytestmark = pytest.mark.parametrize("device", KINDS)


def run(gpu: Any, device: str, *given: Any) -> Any:
    """The kernel's tokens for (logits, temperature, top_k, top_p, min_p, seed, position)."""
    return runs(gpu, device, given)[0]


def runs(gpu: Any, device: str, *calls: Any) -> list[Any]:
    """The tokens of several calls of one kernel."""
    kernel = gpu(device)(sample(calls[0][0].shape[1], KINDS[device]))
    drawn = []
    for given in calls:
        tokens = np.full(len(given[0]), 77, np.int32)
        kernel(*given, tokens)
        drawn.append(tokens)
    return drawn


@pytest.mark.parametrize("vocab", [*ROWS, pytest.param(129_280, marks=pytest.mark.slow)])
def test_it_draws_what_the_meaning_draws(gpu: Any, device: str, vocab: int) -> None:
    """Token for token, with ties, infinities and all filters."""
    given = options(ROWS.get(vocab, 20), vocab, np.random.default_rng(vocab + 1))
    np.testing.assert_array_equal(run(gpu, device, *given), sample_tokens(*given))


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "vocab"), [(4000, 61), (700, 1009)])
def test_it_draws_what_the_meaning_draws_many_times(gpu: Any, device: str, rows: int, vocab: int) -> None:
    given = options(rows, vocab, np.random.default_rng(vocab))
    np.testing.assert_array_equal(run(gpu, device, *given), sample_tokens(*given))


def test_thresholds_among_more_ties_than_shared_memory_holds(gpu: Any, device: str) -> None:
    """Two thirds of all tokens tie, and the thresholds fall among them; in half of the rows at the smallest gap."""
    rng, vocab = np.random.default_rng(8), 3 * KEPT
    logits = np.where(rng.random((6, vocab)) < 0.67, np.float32(-1), rng.normal(-3, 1, (6, vocab)).astype(np.float32))
    logits[::2, 55] = -1 + np.float32(2) ** -20
    logits[1::2, 55] = 4
    rows = (np.full(6, 0.9), np.array([0, 40, 0, 900, 5000, 0]), np.array([0.5, 1, 0.9, 0.8, 0.3, 0.95]), np.zeros(6))
    kinds = (np.float32, np.int32, np.float32, np.float32)
    seed, position = rng.integers(-(2**31), 2**31, (6, 2)).astype(np.int32), np.arange(6, dtype=np.int32)
    given = (logits.astype(np.float32), *(a.astype(k) for a, k in zip(rows, kinds, strict=True)), seed, position)
    np.testing.assert_array_equal(run(gpu, device, *given), sample_tokens(*given))


def test_logits_that_are_no_numbers_give_no_token(gpu: Any, device: str) -> None:
    """The meaning is the same."""
    given = options(40, 515, np.random.default_rng(9))
    logits = given[0]
    logits[::4, 77], logits[1::8, 514], logits[5] = np.nan, np.inf, -np.inf
    logits[8, 77] = -np.nan
    got = run(gpu, device, *given)
    np.testing.assert_array_equal(got, sample_tokens(*given))
    assert (got[::4] == NO_TOKEN).all()
    assert got[5] == NO_TOKEN
    assert (got >= 0).sum() == 40 - 10 - 5 - 1


def test_rows_do_not_depend_on_their_neighbours(gpu: Any, device: str) -> None:
    given = options(12, 515, np.random.default_rng(5))
    none, together, *alone = runs(
        gpu, device, *([a[:0] for a in given], given, *([a[i : i + 1] for a in given] for i in range(12)))
    )
    assert len(none) == 0
    np.testing.assert_array_equal(np.concatenate(alone), together)
