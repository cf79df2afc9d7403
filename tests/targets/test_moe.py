"""The kernel of a mixture of experts against a loop over rows in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tvm.script import tirx as T

from deepzig.targets.cpu import product, quant
from deepzig.targets.cpu.emit import together
from deepzig.targets.cpu.features import Vectors
from deepzig.targets.cpu.layout import LANES, pack_columns, pack_gate_up, pack_quantized_gate_up
from deepzig.targets.cpu.moe import Stack, gate_up, moe, sort
from deepzig.targets.cpu.product import AHEAD, first_element, rows_of
from deepzig.targets.emit import kernel, store

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


def test_a_row_alone_asks_for_what_is_read_next(build: Any, threads: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """From expert to expert, and from one run of columns to the next: what is asked for is read 8 groups later."""
    hidden, width, experts, top_k, dtype, most = 200, 70, 7, 3, "q8", 9999

    def note(log: Any, place: Any) -> None:
        store(log, T.Cast("int32", place), log[0] + 1)
        store(log, log[0] + 1, 0)

    with kernel("traced") as f:
        x = f.tensor("x", "f32", 1, hidden)
        ids, weights = f.tensor("ids", "i32", 1, top_k), f.tensor("weights", "f32", 1, top_k)
        gates = Stack.of(f, "w", (experts + 1, width, 2), hidden, dtype, Vectors(16, 8, "avx2"))
        a = f.tensor("a", "f32", top_k + 1, width)
        asked, read = (f.tensor(name, "i32", most) for name in ("asked", "read"))

        def lanes(weight: Any, index: Any, some: Any) -> Any:
            note(read, first_element(weight, index))
            return weight[(*index, some)]

        monkeypatch.setattr(product, "prefetch", lambda element, keep: note(asked, element.indices[0]))
        monkeypatch.setattr(quant, "_lanes", lanes)
        slots = sort(ids, weights, T.int64(1), experts, 1)
        with together():
            gate_up(slots, gates, slots.encoded(rows_of(x), hidden, gates.method), a)
    threads(1)
    rng = np.random.default_rng(4)
    matrices = (rng.standard_normal((experts + 1, width, hidden), np.float32) for _ in range(2))
    packed, told = pack_quantized_gate_up(*matrices, dtype), np.zeros((2, most), np.int32)
    chosen, values = np.array([[5, 0, 3]], np.int32), np.zeros((top_k + 1, width), np.float32)
    build(f.function)(rng.standard_normal((1, hidden), np.float32), chosen, np.ones((1, 3), np.float32), packed, values,
                      *told)  # fmt: skip
    vectors = packed.shape[-2]
    groups = list(dict.fromkeys((told[1, 1 : told[1, 0] + 1] // (vectors * LANES)).tolist()))
    whole = np.arange(packed.size).reshape(packed.shape)[[0, 3, 5, 7], ..., 0, 0] // (vectors * LANES)
    assert sorted(groups) == sorted(whole.ravel().tolist())  # each once
    order = [(group * vectors + i) * LANES for group in groups for i in range(vectors)]
    ahead = -(-AHEAD // vectors) * vectors
    assert told[0, 1 : len(order) + 1 - ahead].tolist() == order[ahead:]
