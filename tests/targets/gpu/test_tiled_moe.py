"""Products of the rows of experts, many at a time, against a loop over slots."""

from __future__ import annotations

from typing import Any

import numpy as np

from deepzig.ir import OPS
from deepzig.ir.fp8 import FP8
from deepzig.targets.gpu.operands import Encoding, prepare
from deepzig.targets.gpu.tiled_moe import Experts, tiled_experts

from .test_tiled import GPUS, every, rounded
from .weights import Array, Weight, error, normal

EXPERTS, SLOTS, HIDDEN, WIDTH = 37, 3, 101, 70


def sorted_slots(ids: Array) -> tuple[Array, Array]:
    """What `moe_sort` makes of ids [rows, slots]: offsets, and the rows of slots."""
    order = np.argsort(ids.reshape(-1), kind="stable")
    offsets = np.searchsorted(ids.reshape(-1)[order], np.arange(EXPERTS + 1)).astype(np.int32)
    return offsets, (order // SLOTS).astype(np.int32).reshape(ids.shape)


class Layer:
    """Both products of a mixture; the weights in shards."""

    def __init__(self, compile_: Any, device: str, wdtype: str, shards: list[tuple[int, int]]) -> None:
        gpu = GPUS[device]
        rng = np.random.default_rng(3)
        self.shards = shards
        self.gate, self.up = (Weight.of(normal(rng, EXPERTS, WIDTH, HIDDEN) / 10, wdtype) for _ in range(2))
        self.down = Weight.of(normal(rng, EXPERTS, HIDDEN, WIDTH) / 8, wdtype)
        self.gate_up = np.stack([self.gate.packed, self.up.packed], 2).reshape(EXPERTS, 2 * WIDTH, -1)
        self.encodings = [Encoding.of(gpu, k, wdtype) for k in (HIDDEN, WIDTH)]
        kernels = [
            prepare(self.encodings[0], x_shape=(HIDDEN,)),
            prepare(self.encodings[1], x_shape=(SLOTS, WIDTH), parts=SLOTS, stride=WIDTH),
        ]
        for shard in shards:
            first = Experts(HIDDEN, WIDTH, wdtype, EXPERTS, SLOTS, gathered=True, gated=True, part=shard)
            second = Experts(WIDTH, HIDDEN, wdtype, EXPERTS, SLOTS, part=shard)
            kernels += [tiled_experts(gpu, first), tiled_experts(gpu, second)]
        self.run = compile_.all(*kernels)

    def prepared(self, which: int, x: Array, parts: int) -> Array:
        encoding = self.encodings[which]
        result = np.zeros((len(x), parts, encoding.pitch), np.float32 if encoding.dtype == "f32" else np.uint32)
        self.run[which](x, result)
        return result

    def __call__(self, x: Array, ids: Array) -> tuple[Array, Array]:
        """The hidden values, and the results, of the slots of rows."""
        rows = len(x)
        offsets, order = sorted_slots(ids)
        hidden = np.full((rows, SLOTS, WIDTH), np.nan, np.float32)
        y = np.full((rows, SLOTS, HIDDEN), np.nan, np.float32)
        words = self.prepared(0, x, 1)
        for i, (begin, end) in enumerate(self.shards):
            self.run[2 + 2 * i](words, offsets, order, self.gate_up[begin:end], hidden)
        words = self.prepared(1, hidden, SLOTS)
        for i, (begin, end) in enumerate(self.shards):
            self.run[3 + 2 * i](words, offsets, self.down.packed[begin:end], y)
        place = np.argsort(ids.reshape(-1), kind="stable")
        results = []
        for values in (hidden, y):
            back = np.empty((rows * SLOTS, values.shape[-1]), np.float32)
            back[place] = values.reshape(back.shape)
            results.append(back.reshape(values.shape))
        return results[0], results[1]


@every(("cuda", "bf16"), ("cuda", "q4"), ("metal", "q8"), ("plain", FP8))
def test_experts(gpu: Any, device: str, wdtype: str) -> None:
    """One expert has many rows, others few or none; and the same bits for a row alone and among others."""
    rng, rows = np.random.default_rng(9), 83
    layer = Layer(gpu(GPUS[device].kind), device, wdtype, [(0, 33), (33, EXPERTS)])
    ids = np.stack([rng.permutation(EXPERTS - 2)[:SLOTS] for _ in range(rows)]).astype(np.int32)
    ids[:75, 1] = EXPERTS - 1  # more rows than a tile has
    x = normal(rng, rows, HIDDEN)
    hidden, y = layer(x, ids)
    linear, silu = OPS["expert_linear"].meaning, OPS["silu"].meaning
    slots = np.repeat(rounded(x, GPUS[device], wdtype)[:, None], SLOTS, 1)
    want = silu(linear(slots, layer.gate.value, ids)) * linear(slots, layer.up.value, ids)
    assert error(hidden, want) <= 3e-6
    want = linear(rounded(hidden, GPUS[device], wdtype), layer.down.value, ids)
    assert error(y, want) <= 3e-6
    for part in (slice(0, 0), slice(82, 83), slice(20, 45)):
        again = layer(x[part], ids[part])
        assert np.array_equal(again[0], hidden[part]) and np.array_equal(again[1], y[part])
