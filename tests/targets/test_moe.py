"""The three kernels of a mixture of experts against a loop over rows in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from deepzig.targets.cpu.features import Vectors
from deepzig.targets.cpu.layout import pack_columns, pack_gate_up
from deepzig.targets.cpu.moe import moe_down, moe_gate_up, moe_sort

AVX2, AVX512 = Vectors(16, 8), Vectors(32, 16)
TOLERANCE = 2e-6


def routing(rng: np.random.Generator, rows: int, experts: int, top_k: int) -> tuple[Any, Any]:
    """Distinct experts of each row, mostly from the first half of them, and weights."""
    ids = np.stack([rng.permutation(experts)[:top_k] for _ in range(rows)])
    if experts // 2 >= top_k:
        ids[::2] = np.stack([rng.permutation(experts // 2)[:top_k] for _ in range(len(ids[::2]))])
    return ids.astype(np.int32), rng.uniform(0.1, 1.0, (rows, top_k)).astype(np.float32)


def sort(run: Any, ids: Any, weights: Any, experts: int, shared: int) -> tuple[Any, Any, Any]:
    rows, slots = len(ids), ids.shape[1] + shared
    offsets = np.full(experts + shared + 1, -1, np.int32)
    slot_rows, slot_weights = np.full((rows, slots), -1, np.int32), np.full((rows, slots), np.nan, np.float32)
    run(ids, weights, offsets, slot_rows, slot_weights)
    return offsets, slot_rows, slot_weights


@pytest.mark.parametrize(("experts", "top_k", "shared"), [(8, 2, 1), (5, 3, 0), (300, 7, 2), (1, 1, 0)])
def test_sort(build: Any, experts: int, top_k: int, shared: int) -> None:
    rng = np.random.default_rng(experts)
    run = build(moe_sort(experts, top_k, shared))
    for rows in (1, 2, 33):
        ids, weights = routing(rng, rows, experts, top_k)
        offsets, slot_rows, slot_weights = sort(run, ids, weights, experts, shared)
        slots = [(e, row, w) for row in range(rows) for e, w in zip(ids[row], weights[row], strict=True)]
        slots += [(experts + s, row, 1.0) for row in range(rows) for s in range(shared)]
        slots.sort()
        assert slot_rows.ravel().tolist() == [row for _, row, _ in slots]
        assert slot_weights.ravel().tolist() == [w for _, _, w in slots]
        counts = np.bincount([e for e, _, _ in slots], minlength=experts + shared)
        assert offsets.tolist() == [0, *np.cumsum(counts).tolist()]


# hidden, width of an expert, routed experts, top_k, shared, wdtype, residual, vectors, rows
CASES = [
    (64, 48, 8, 2, 1, "bf16", True, AVX2, (1, 2, 40)),
    (37, 35, 6, 3, 0, "f16", False, AVX2, (1, 9)),
    (53, 19, 4, 2, 2, "f32", True, AVX2, (1, 5, 30)),
    (131, 13, 3, 1, 1, "bf16", True, AVX2, (1, 3, 7)),
    (67, 41, 4, 2, 1, "bf16", True, AVX512, (1, 21)),
]


class Layer:
    """The kernels of one layer, and its weights."""

    def __init__(self, build: Any, random_weight: Any, case: Any) -> None:
        self.hidden, self.width, self.experts, self.top_k, self.shared, *others = case
        wdtype, self.residual, vectors, _ = others
        every, slots = self.experts + self.shared, self.top_k + self.shared
        rng = np.random.default_rng(0)
        gate, self.gate = random_weight(rng, (every, self.width, self.hidden), wdtype)
        up, self.up = random_weight(rng, (every, self.width, self.hidden), wdtype)
        down, self.down = random_weight(rng, (every, self.hidden, self.width), wdtype)
        self.gate_up_packed, self.down_packed = pack_gate_up(gate, up), pack_columns(down)
        self.sort = build(moe_sort(self.experts, self.top_k, self.shared))
        self.gate_up = build(moe_gate_up(self.hidden, self.width, every, slots, wdtype, vectors=vectors))
        self.down_sum = build(
            moe_down(self.width, self.hidden, every, slots, wdtype, residual=self.residual, vectors=vectors)
        )

    def __call__(self, x: Any, ids: Any, weights: Any, residual: Any) -> Any:
        rows, slots = len(x), self.top_k + self.shared
        offsets, slot_rows, slot_weights = sort(self.sort, ids, weights, self.experts, self.shared)
        a = np.full((rows, slots, self.width), np.nan, np.float32)
        self.gate_up(x, offsets, slot_rows, self.gate_up_packed, a)
        y = np.full((rows, self.hidden), np.nan, np.float32)
        added = [residual] if self.residual else []
        self.down_sum(a, offsets, slot_rows, slot_weights, self.down_packed, *added, y)
        return y

    def reference(self, x: Any, ids: Any, weights: Any, residual: Any) -> Any:
        y = residual.astype(np.float64) * self.residual
        always = [(self.experts + s, 1.0) for s in range(self.shared)]
        for row, (chosen, factors) in enumerate(zip(ids, weights, strict=True)):
            for e, factor in [*zip(chosen, factors, strict=True), *always]:
                opened, up = self.gate[e] @ x[row], self.up[e] @ x[row]
                y[row] += factor * (self.down[e] @ (opened / (1 + np.exp(-opened)) * up))
        return y


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"h{c[0]}-i{c[1]}-e{c[2]}-{c[5]}")
def test_layer(build: Any, random_weight: Any, case: Any) -> None:
    layer = Layer(build, random_weight, case)
    rng = np.random.default_rng(1)
    for rows in case[-1]:
        ids, weights = routing(rng, rows, layer.experts, layer.top_k)
        x, residual = (rng.standard_normal((rows, layer.hidden), np.float32) for _ in range(2))
        expected = layer.reference(x, ids, weights, residual)
        y = layer(x, ids, weights, residual)
        assert np.linalg.norm(y - expected) <= TOLERANCE * np.linalg.norm(expected)


def test_a_row_has_the_same_bits_in_any_company(build: Any, random_weight: Any, threads: Any) -> None:
    case = (47, 29, 5, 2, 1, "bf16", True, AVX2, ())
    layers = [Layer(build, random_weight, c) for c in (case, (*case[:7], AVX512, ()))]
    rng = np.random.default_rng(2)
    rows = 20
    ids, weights = routing(rng, rows, 5, 2)
    x, residual = (rng.standard_normal((rows, 47), np.float32) for _ in range(2))
    whole = layers[0](x, ids, weights, residual)
    for count in (1, 2):
        threads(count)
        for layer in layers:
            for size in range(1, rows + 1):
                part = slice(rows - size, rows)
                assert np.array_equal(layer(x[part], ids[part], weights[part], residual[part]), whole[part])
