"""The router against plain numpy, ties and groups included."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from deepzig.targets.cpu.features import Vectors
from deepzig.targets.cpu.layout import pack_columns
from deepzig.targets.cpu.router import router

AVX2 = Vectors(16, 8)


def greatest(values: Any, count: int) -> Any:
    """Indices of the greatest, in descending order, of equals the lower first."""
    return np.argsort(-values, kind="stable")[:count]


def score(logits: Any, scoring: str) -> Any:
    """The experts' scores, f64."""
    if scoring == "sigmoid":
        return 1 / (1 + np.exp(-logits))
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def reference(scores: Any, bias: Any, top_k: int, groups: int, keep: int, best: int) -> Any:
    """The experts each row chooses."""
    ids = []
    for choice in scores + bias:
        grouped = choice.reshape(groups, -1)
        if groups > 1:
            kept = greatest(np.sort(grouped, -1)[:, -best:].sum(-1, dtype=np.float32), keep)
            grouped = np.where(np.isin(np.arange(groups), kept)[:, None], grouped, -np.inf)
        ids.append(greatest(grouped.ravel(), top_k))
    return np.array(ids, np.int32)


def weights_of(scores: Any, ids: Any, norm: bool, scaling: float) -> Any:
    weights = np.take_along_axis(scores.astype(np.float64), ids, -1)
    return (weights / (weights.sum(-1, keepdims=True) + 1e-20) if norm else weights) * scaling


# scoring, K, experts, top_k, groups, keep, best, norm, scaling, bias, rows
CASES = [
    ("sigmoid", 64, 256, 8, 8, 4, 2, True, 2.5, True, (1, 7)),
    ("sigmoid", 37, 8, 2, 1, 1, 2, True, 1.0, True, (1, 3, 4, 13)),
    ("sigmoid", 53, 42, 5, 6, 2, 2, False, 0.37, True, (1, 9)),
    ("sigmoid", 19, 160, 6, 20, 3, 1, True, 16.0, True, (1, 6)),
    ("sigmoid", 5, 3, 3, 1, 1, 2, False, 1.0, False, (1, 8)),
    ("softmax", 64, 160, 6, 8, 3, 1, False, 16.0, False, (1, 7)),
    ("softmax", 41, 67, 6, 1, 1, 1, False, 1.0, False, (1, 5)),
    ("softmax", 23, 30, 4, 5, 2, 2, True, 0.7, True, (1, 3)),
    ("softmax", 7, 16, 16, 4, 4, 1, True, 1.0, False, (1, 2)),
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c[0]}-k{c[1]}-e{c[2]}-top{c[3]}-groups{c[4]}")
def test_router(build: Any, case: Any) -> None:
    scoring, k, experts, top_k, groups, keep, best, norm, scaling, use_bias, row_counts = case
    rng = np.random.default_rng(k)

    def kernel(forced: bool) -> Any:
        return router(
            k, experts, top_k, scoring=scoring, groups=groups, keep=keep, best=best, norm_topk_prob=norm,
            scaling=scaling, bias=use_bias, forced=forced, vectors=AVX2,
        )  # fmt: skip

    free, forced = build(kernel(False)), build(kernel(True))
    gate = rng.standard_normal((experts, k), np.float32) / np.float32(np.sqrt(k))
    bias = rng.normal(0, 0.15, experts).astype(np.float32)
    packed, biases = pack_columns(gate), [bias] if use_bias else []
    for rows in row_counts:
        x = rng.standard_normal((rows, k), np.float32)
        scores = score(x.astype(np.float64) @ gate.T.astype(np.float64), scoring)
        ids, weights = np.full((rows, top_k), -1, np.int32), np.full((rows, top_k), np.nan, np.float32)
        free(x, packed, *biases, ids, weights)
        assert np.array_equal(ids, reference(scores, bias * use_bias, top_k, groups, keep, best))
        np.testing.assert_allclose(weights, weights_of(scores, ids, norm, scaling), rtol=2e-6)

        given = np.stack([rng.permutation(experts)[:top_k] for _ in range(rows)]).astype(np.int32)
        forced(x, packed, *biases, given, ids, weights)
        assert np.array_equal(ids, given)
        np.testing.assert_allclose(weights, weights_of(scores, given, norm, scaling), rtol=2e-6)


def test_of_equals_the_lower_index_wins(build: Any) -> None:
    rng = np.random.default_rng(5)
    experts, groups = 64, 8
    kernel = router(
        4, experts, 6, scoring="sigmoid", groups=groups, keep=3, best=2, norm_topk_prob=False, scaling=1.0,
        bias=True, forced=False, vectors=AVX2,
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
    assert np.array_equal(ids, reference(scores, bias, 6, groups, 3, 2))


@pytest.mark.parametrize("scoring", ["sigmoid", "softmax"])
def test_a_row_has_the_same_bits_in_any_company(scoring: str, build: Any, threads: Any) -> None:
    rng = np.random.default_rng(6)
    kernel = router(
        83, 40, 4, scoring=scoring, groups=4, keep=2, best=2, norm_topk_prob=True, scaling=2.5, bias=True,
        forced=False, vectors=AVX2,
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


def test_rows_that_are_not_numbers_choose_experts_that_exist(build: Any) -> None:
    kernel = router(
        4, 19, 3, scoring="softmax", groups=1, keep=1, best=1, norm_topk_prob=False, scaling=1.0, bias=False,
        forced=False, vectors=AVX2,
    )  # fmt: skip
    ids, weights = np.full((2, 3), -1, np.int32), np.empty((2, 3), np.float32)
    gate = np.random.default_rng(7).standard_normal((19, 4), np.float32)
    build(kernel)(np.full((2, 4), np.nan, np.float32), pack_columns(gate), ids, weights)
    assert ((ids >= 0) & (ids < 19)).all()
