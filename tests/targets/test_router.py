"""The router against plain numpy, ties and groups included."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from deepzig.targets.cpu.features import Vectors
from deepzig.targets.cpu.layout import pack_columns
from deepzig.targets.cpu.router import router

AVX2 = Vectors(16, 8)


def best(values: Any, count: int) -> Any:
    """Indices of the greatest, in descending order, of equals the lower first."""
    return np.argsort(-values, kind="stable")[:count]


def reference(scores: Any, bias: Any, top_k: int, n_group: int, topk_group: int) -> Any:
    """The experts each row chooses."""
    ids = []
    for choice in scores + bias:
        grouped = choice.reshape(n_group, -1)
        if n_group > 1:
            kept = best(np.sort(grouped, -1)[:, -2:].sum(-1, dtype=np.float32), topk_group)
            grouped = np.where(np.isin(np.arange(n_group), kept)[:, None], grouped, -np.inf)
        ids.append(best(grouped.ravel(), top_k))
    return np.array(ids, np.int32)


def weights_of(scores: Any, ids: Any, norm: bool, scaling: float) -> Any:
    weights = np.take_along_axis(scores.astype(np.float64), ids, -1)
    return (weights / (weights.sum(-1, keepdims=True) + 1e-20) if norm else weights) * scaling


# K, experts, top_k, n_group, topk_group, norm, scaling, bias, rows
CASES = [
    (64, 256, 8, 8, 4, True, 2.5, True, (1, 7)),
    (37, 8, 2, 1, 1, True, 1.0, True, (1, 3, 4, 13)),
    (53, 42, 5, 6, 2, False, 0.37, True, (1, 9)),
    (19, 160, 6, 20, 3, True, 16.0, True, (1, 6)),
    (5, 3, 3, 1, 1, False, 1.0, False, (1, 8)),
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"k{c[0]}-e{c[1]}-top{c[2]}-groups{c[3]}")
def test_router(build: Any, case: Any) -> None:
    k, experts, top_k, n_group, topk_group, norm, scaling, use_bias, row_counts = case
    rng = np.random.default_rng(k)

    def kernel(forced: bool) -> Any:
        return router(
            k, experts, top_k, n_group=n_group, topk_group=topk_group, norm_topk_prob=norm, scaling=scaling,
            bias=use_bias, forced=forced, vectors=AVX2,
        )  # fmt: skip

    free, forced = build(kernel(False)), build(kernel(True))
    gate = rng.standard_normal((experts, k), np.float32) / np.float32(np.sqrt(k))
    bias = rng.normal(0, 0.15, experts).astype(np.float32)
    packed, biases = pack_columns(gate), [bias] if use_bias else []
    for rows in row_counts:
        x = rng.standard_normal((rows, k), np.float32)
        scores = 1 / (1 + np.exp(-(x.astype(np.float64) @ gate.T.astype(np.float64))))
        ids, weights = np.full((rows, top_k), -1, np.int32), np.full((rows, top_k), np.nan, np.float32)
        free(x, packed, *biases, ids, weights)
        assert np.array_equal(ids, reference(scores, bias * use_bias, top_k, n_group, topk_group))
        np.testing.assert_allclose(weights, weights_of(scores, ids, norm, scaling), rtol=2e-6)

        given = np.stack([rng.permutation(experts)[:top_k] for _ in range(rows)]).astype(np.int32)
        forced(x, packed, *biases, given, ids, weights)
        assert np.array_equal(ids, given)
        np.testing.assert_allclose(weights, weights_of(scores, given, norm, scaling), rtol=2e-6)


def test_of_equals_the_lower_index_wins(build: Any) -> None:
    rng = np.random.default_rng(5)
    experts, n_group = 64, 8
    kernel = router(
        4, experts, 6, n_group=n_group, topk_group=3, norm_topk_prob=False, scaling=1.0, bias=True,
        forced=False, vectors=AVX2,
    )  # fmt: skip
    run = build(kernel)
    rows = 64
    x = np.zeros((rows, 4), np.float32)
    bias = rng.integers(0, 3, experts).astype(np.float32) / 4
    ids, weights = np.empty((rows, 6), np.int32), np.empty((rows, 6), np.float32)
    gate = rng.integers(-1, 2, (experts, 4)).astype(np.float32)
    x[:, 0] = rng.integers(0, 2, rows)
    x[:, 1] = rng.integers(0, 2, rows)
    run(x, pack_columns(gate), bias, ids, weights)
    scores = (1 / (1 + np.exp(-(x @ gate.T).astype(np.float64)))).astype(np.float32)
    assert np.array_equal(ids, reference(scores, bias, 6, n_group, 3))


def test_a_row_has_the_same_bits_in_any_company(build: Any, threads: Any) -> None:
    rng = np.random.default_rng(6)
    kernel = router(
        83, 40, 4, n_group=4, topk_group=2, norm_topk_prob=True, scaling=2.5, bias=True, forced=False,
        vectors=AVX2,
    )  # fmt: skip
    run = build(kernel)
    packed = pack_columns(rng.standard_normal((40, 83), np.float32))
    bias = rng.normal(0, 0.1, 40).astype(np.float32)
    x = rng.standard_normal((20, 83), np.float32)

    def compute(rows: Any) -> tuple[Any, Any]:
        ids, weights = np.empty((len(rows), 4), np.int32), np.empty((len(rows), 4), np.float32)
        run(rows, packed, bias, ids, weights)
        return ids, weights

    whole = compute(x)
    for count in (1, 2):
        threads(count)
        for size in range(1, 21):
            for actual, expected in zip(compute(x[:size]), whole, strict=True):
                assert np.array_equal(actual, expected[:size])
