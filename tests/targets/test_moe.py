"""The kernel of a mixture of experts against a loop over rows in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from deepzig.targets.cpu.features import Vectors
from deepzig.targets.cpu.layout import pack_columns, pack_gate_up
from deepzig.targets.cpu.moe import moe

AVX2, AVX512 = Vectors(16, 8), Vectors(32, 16)
TOLERANCE = 2e-6


def routing(rng: np.random.Generator, rows: int, experts: int, top_k: int) -> tuple[Any, Any]:
    """Distinct experts of each row, mostly from the first half of them, and weights."""
    ids = np.stack([rng.permutation(experts)[:top_k] for _ in range(rows)])
    if experts // 2 >= top_k:
        ids[::2] = np.stack([rng.permutation(experts // 2)[:top_k] for _ in range(len(ids[::2]))])
    return ids.astype(np.int32), rng.uniform(0.1, 1.0, (rows, top_k)).astype(np.float32)


# hidden, width of an expert, routed experts, top_k, shared, wdtype, residual, vectors, rows
CASES = [
    (64, 48, 8, 2, 1, "bf16", True, AVX2, (1, 2, 40)),
    (37, 35, 6, 3, 0, "f16", False, AVX2, (1, 9)),
    (53, 19, 4, 2, 2, "f32", True, AVX2, (1, 5, 30)),
    (131, 13, 3, 1, 1, "bf16", True, AVX2, (1, 3, 7)),
    (67, 41, 4, 2, 1, "bf16", True, AVX512, (1, 21)),
    (19, 5, 300, 7, 2, "f32", True, AVX2, (1, 2, 33)),
    (23, 17, 1, 1, 0, "bf16", False, AVX2, (1, 4)),
]


class Layer:
    """The kernel of one layer, and its weights."""

    def __init__(self, build: Any, random_weight: Any, case: Any) -> None:
        self.hidden, self.width, self.experts, self.top_k, self.shared, *others = case
        wdtype, self.residual, vectors, _ = others
        every = self.experts + self.shared
        rng = np.random.default_rng(0)
        gate, self.gate = random_weight(rng, (every, self.width, self.hidden), wdtype)
        up, self.up = random_weight(rng, (every, self.width, self.hidden), wdtype)
        down, self.down = random_weight(rng, (every, self.hidden, self.width), wdtype)
        self.packed = pack_gate_up(gate, up), pack_columns(down)
        sizes = self.hidden, self.width, self.experts, self.top_k, self.shared
        self.run = build(moe(*sizes, wdtype, wdtype, residual=self.residual, vectors=vectors))

    def __call__(self, x: Any, ids: Any, weights: Any, residual: Any) -> Any:
        y = np.full((len(x), self.hidden), np.nan, np.float32)
        self.run(x, ids, weights, *self.packed, *([residual] if self.residual else []), y)
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
