"""The routing kernel of GPUs against plain numpy, ties and groups included."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from deepzig.ir import OPS
from deepzig.targets.gpu.few import few
from deepzig.targets.gpu.layout import pack_rows
from deepzig.targets.gpu.product import Product
from deepzig.targets.gpu.router import route

from ..test_router import CASES, reference, score, weights_of
from .conftest import KINDS

pytestmark = pytest.mark.parametrize("device", KINDS)


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c[0]}-e{c[2]}-top{c[3]}-groups{c[4]}")
def test_route(gpu: Any, device: str, case: Any) -> None:
    scoring, k, experts, top_k, groups, keep, best, norm, scaling, use_bias, row_counts = case
    rng = np.random.default_rng(k)

    def kernel(forced: bool) -> Any:
        return route(
            experts, top_k, scoring=scoring, groups=groups, keep=keep, best=best, norm_topk_prob=norm,
            scaling=scaling, bias=use_bias, forced=forced,
        )  # fmt: skip

    free, forced = gpu(device).all(kernel(False), kernel(True))
    bias = rng.normal(0, 0.15, experts).astype(np.float32)
    biases = [bias] if use_bias else []
    rows = row_counts[-1]
    logits = rng.standard_normal((rows, experts), np.float32)
    scores = score(logits.astype(np.float64), scoring)
    ids, weights = np.full((rows, top_k), -1, np.int32), np.full((rows, top_k), np.nan, np.float32)
    free(logits, *biases, ids, weights)
    assert np.array_equal(ids, reference(scores, bias * use_bias, top_k, groups, keep, best))
    np.testing.assert_allclose(weights, weights_of(scores, ids, norm, scaling), rtol=2e-6)
    for row in range(rows):
        alone_ids, alone = np.empty((1, top_k), np.int32), np.empty((1, top_k), np.float32)
        free(logits[row : row + 1], *biases, alone_ids, alone)
        assert np.array_equal(alone_ids[0], ids[row])
        assert np.array_equal(alone[0], weights[row])

    given = np.stack([rng.permutation(experts)[:top_k] for _ in range(rows)]).astype(np.int32)
    forced(logits, *biases, given, ids, weights)
    assert np.array_equal(ids, given)
    np.testing.assert_allclose(weights, weights_of(scores, given, norm, scaling), rtol=2e-6)


def test_logits_and_routing_are_what_the_op_means(gpu: Any, device: str) -> None:
    rng = np.random.default_rng(11)
    x, gate = rng.standard_normal((5, 75), np.float32), rng.standard_normal((24, 75), np.float32) / np.float32(9)
    bias = rng.normal(0, 0.15, 24).astype(np.float32)
    attrs: dict[str, Any] = {
        "scoring": "sigmoid", "top_k": 4, "groups": 3, "keep": 2, "best": 2, "norm_topk_prob": True, "scaling": 2.5,
    }  # fmt: skip
    logits, ids, weights = np.empty((5, 24), np.float32), np.empty((5, 4), np.int32), np.empty((5, 4), np.float32)
    product, choose = gpu(device).all(
        few(KINDS[device], Product(75, 24, "f32")), route(24, **attrs, bias=True, forced=False)
    )
    product(x, pack_rows(gate, "f32"), logits)
    choose(logits, bias, ids, weights)
    want_ids, want = OPS["router"].meaning(x, gate, bias, None, **attrs)
    assert np.array_equal(ids, want_ids)
    np.testing.assert_allclose(weights, want, rtol=3e-6)


def test_of_equals_the_lower_index_wins(gpu: Any, device: str) -> None:
    rng = np.random.default_rng(5)
    experts, groups, rows = 64, 8, 64
    kernel = route(
        experts, 6, scoring="sigmoid", groups=groups, keep=3, best=2, norm_topk_prob=False, scaling=1.0, bias=True,
        forced=False,
    )  # fmt: skip
    bias = rng.integers(0, 3, experts).astype(np.float32) / 4
    logits = rng.integers(-1, 2, (rows, experts)).astype(np.float32)
    ids, weights = np.empty((rows, 6), np.int32), np.empty((rows, 6), np.float32)
    gpu(device)(kernel)(logits, bias, ids, weights)
    scores = (1 / (1 + np.exp(-logits.astype(np.float64)))).astype(np.float32)
    assert np.array_equal(ids, reference(scores, bias, 6, groups, 3, 2))


@pytest.mark.parametrize("groups", [1, 3])
def test_logits_that_are_no_numbers_choose_experts_that_exist(gpu: Any, device: str, groups: int) -> None:
    kernel = route(
        21, 5, scoring="softmax", groups=groups, keep=1, best=2, norm_topk_prob=False, scaling=1.0, bias=False,
        forced=False,
    )  # fmt: skip
    logits = np.random.default_rng(7).standard_normal((4, 21), np.float32)
    logits[0], logits[1, 3], logits[2], logits[3, 9] = np.nan, np.nan, -np.inf, np.inf
    ids, weights = np.full((4, 5), -1, np.int32), np.empty((4, 5), np.float32)
    gpu(device)(kernel)(logits, ids, weights)
    assert ((ids >= 0) & (ids < 21)).all()
