"""The kernels of a mixture of experts for few rows against its meaning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from deepzig.ir import OPS
from deepzig.ir.fp8 import FP8
from deepzig.targets.gpu.layout import pack_rows
from deepzig.targets.gpu.moe import moe_combine, moe_down, moe_gate_up, moe_sort

from .conftest import KINDS
from .test_few import DEVICES, DTYPES, error, normal, weight

TOLERANCE = 1e-5
"""Two products and an exponential in f32; norm-relative."""
ROUNDED = 2e-3
"""With integers: a code of what is between the products is one off now and then."""


def routing(rng: np.random.Generator, rows: int, experts: int, top_k: int) -> tuple[Any, Any]:
    """Distinct experts of each row, mostly from the first half of them, and weights."""
    ids = np.stack([rng.permutation(experts)[:top_k] for _ in range(rows)])
    if experts // 2 >= top_k:
        ids[::2] = np.stack([rng.permutation(experts // 2)[:top_k] for _ in range(len(ids[::2]))])
    return ids.astype(np.int32), rng.uniform(0.1, 1.0, (rows, top_k)).astype(np.float32)


def sort(run: Any, ids: Any, weights: Any, experts: int, shared: int) -> list[Any]:
    rows, slots = len(ids), ids.shape[1] + shared
    outputs = [np.full(experts + shared + 1, -1, np.int32)]
    outputs += [np.full((rows, slots), -1, dtype) for dtype in (np.int32, np.float32, np.int32, np.int32)]
    run(ids, weights, *outputs)
    return outputs


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("experts", "top_k", "shared"), [(8, 2, 1), (5, 3, 0), (300, 7, 2), (1, 1, 0)])
def test_sort(gpu: Any, experts: int, top_k: int, shared: int, device: str) -> None:
    rng = np.random.default_rng(experts)
    run = gpu(device)(moe_sort(experts, top_k, shared))
    for rows in (1, 2, 33, 700 if top_k < 7 else 300):
        ids, weights = routing(rng, rows, experts, top_k)
        offsets, slot_rows, slot_weights, slot_experts, places = sort(run, ids, weights, experts, shared)
        slots = [
            (e, row, j, w) for row in range(rows) for j, (e, w) in enumerate(zip(ids[row], weights[row], strict=True))
        ]
        slots += [(experts + s, row, top_k + s, 1.0) for row in range(rows) for s in range(shared)]
        slots.sort()
        assert slot_rows.ravel().tolist() == [row for _, row, _, _ in slots]
        assert slot_weights.ravel().tolist() == [w for *_, w in slots]
        assert slot_experts.ravel().tolist() == [e for e, *_ in slots]
        assert [int(places[row, j]) for _, row, j, _ in slots] == list(range(len(slots)))
        counts = np.bincount([e for e, *_ in slots], minlength=experts + shared)
        assert offsets.tolist() == [0, *np.cumsum(counts).tolist()]


@dataclass(frozen=True)
class Case:
    """Sizes of a mixture; `cut`: experts of the first shard."""

    hidden: int
    width: int
    experts: int
    top_k: int
    shared: int
    dtype: str
    residual: bool = True
    cut: int | None = None


class Layer:
    """The kernels of one layer, and its weights."""

    def __init__(self, compiler: Any, device: str, case: Case) -> None:
        self.case = case
        every, slots = case.experts + case.shared, case.top_k + case.shared
        rng = np.random.default_rng(0)
        (gate, self.gate), (up, self.up) = (weight(rng, (every, case.width, case.hidden), case.dtype) for _ in range(2))
        down, self.down = weight(rng, (every, case.hidden, case.width), case.dtype)
        pairs = np.stack([pack_rows(w, case.dtype) for w in (gate, up)], 2)
        self.parts = [None] if case.cut is None else [(0, case.cut), (case.cut, every)]
        shards = [slice(None) if part is None else slice(*part) for part in self.parts]
        self.gate_up_packed = [pairs.reshape(every, 2 * case.width, -1)[shard] for shard in shards]
        self.down_packed = [pack_rows(down, case.dtype)[shard] for shard in shards]
        self.sort, self.sum, *products = compiler.all(
            moe_sort(case.experts, case.top_k, case.shared),
            moe_combine(case.hidden, slots, residual=case.residual),
            *(
                moe_gate_up(KINDS[device], case.hidden, case.width, every, slots, case.dtype, part)
                for part in self.parts
            ),
            *(moe_down(KINDS[device], case.width, case.hidden, every, slots, case.dtype, part) for part in self.parts),
        )
        self.gate_up, self.down_product = products[: len(shards)], products[len(shards) :]

    def __call__(self, x: Any, ids: Any, weights: Any, residual: Any) -> Any:
        case, (rows, slots) = self.case, (len(x), self.case.top_k + self.case.shared)
        offsets, slot_rows, slot_weights, slot_experts, places = sort(
            self.sort, ids, weights, case.experts, case.shared
        )
        a, d = (np.full((rows, slots, size), np.nan, np.float32) for size in (case.width, case.hidden))
        for run, packed in zip(self.gate_up, self.gate_up_packed, strict=True):
            run(x, offsets, slot_rows, slot_experts, packed, a)
        for run, packed in zip(self.down_product, self.down_packed, strict=True):
            run(a, offsets, slot_experts, packed, d)
        y = np.full((rows, case.hidden), np.nan, np.float32)
        self.sum(d, slot_weights, places, *([residual] if case.residual else []), y)
        return y

    def meaning(self, x: Any, ids: Any, weights: Any, residual: Any) -> Any:
        added = residual if self.case.residual else None
        return OPS["moe"].meaning(x, ids, weights, self.gate, self.up, self.down, added, shared=self.case.shared)


CASES = [
    *(Case(101, 35, 6, 2, 1, dtype) for dtype in DTYPES),
    Case(64, 48, 8, 3, 0, "bf16", residual=False, cut=5),
    Case(53, 19, 20, 2, 2, "q4", cut=7),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", CASES, ids=lambda c: f"h{c.hidden}-{c.dtype}")
def test_layer(gpu: Any, case: Case, device: str) -> None:
    layer = Layer(gpu(device), device, case)
    rng = np.random.default_rng(1)
    rows = 30
    ids, weights = routing(rng, rows, case.experts, case.top_k)
    x, residual = (normal(rng, rows, case.hidden) for _ in range(2))
    whole = layer(x, ids, weights, residual)
    want = layer.meaning(x, ids, weights, residual)
    assert error(whole, want) <= (ROUNDED if case.dtype in ("q8", "q4") else TOLERANCE)
    for size in (1, 2, 5, 11):
        part = slice(rows - size, rows)
        assert np.array_equal(layer(x[part], ids[part], weights[part], residual[part]), whole[part])
    part = slice(0, 0)
    assert layer(x[part], ids[part], weights[part], residual[part]).shape == (0, case.hidden)


@pytest.mark.parametrize("device", DEVICES)
def test_a_row_may_choose_an_expert_twice(gpu: Any, device: str) -> None:
    layer = Layer(gpu(device), device, Case(40, 24, 4, 2, 1, FP8))
    rng = np.random.default_rng(2)
    x, residual = (normal(rng, 3, 40) for _ in range(2))
    ids, weights = np.array([[1, 1], [3, 3], [1, 0]], np.int32), rng.uniform(0.1, 1, (3, 2)).astype(np.float32)
    whole = layer(x, ids, weights, residual)
    assert error(whole, layer.meaning(x, ids, weights, residual)) <= TOLERANCE
    assert np.array_equal(layer(x[:1], ids[:1], weights[:1], residual[:1]), whole[:1])
