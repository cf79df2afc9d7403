"""Latent attention, lowered and run launch by launch, against its meaning: attention over the expanded cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from deepzig.ir import OPS, Node, TensorType, Value
from deepzig.ir.fp8 import FP8
from deepzig.targets.gpu.device import GpuTarget
from deepzig.targets.gpu.lower_attention import ATTENTION

from ..latents import Batch, Sizes, error, latents_of, rounded
from .conftest import KINDS
from .test_few import normal, weight
from .test_lower_products import Eager

NUMPY = {"f32": np.float32, "u32": np.uint32}
RAGGED = [(0, 3), (61, 62), (130, 137), (15, 17), (0, 1)]
# of what is multiplied on bf16 units; the rest is multiplied in f32
ROUNDED, EXACT = 1e-2, 1e-5


class Run(Eager):
    """Like `Eager`, with words among the outputs."""

    def call(self, kernel: Any, args: Sequence[Any], *outputs: TensorType) -> Any:
        shapes = [[self.rows if d == "n" else int(d) for d in t.shape] for t in outputs]
        results = [np.zeros(s, NUMPY[t.dtype]) for s, t in zip(shapes, outputs, strict=True)]
        self.launches += 1
        self.compiler(kernel)(*args, *results)
        return results[0] if len(results) == 1 else tuple(results)


def attended(gpu: Any, device: str, s: Sizes, graph: str, wdtype: str, cdtype: str, interleaved: bool) -> float:
    """The distance of the lowered op from its meaning."""
    rng = np.random.default_rng(3)
    batch = Batch.of(RAGGED, s.page, rng)
    n = len(batch.seq)
    latents = latents_of(batch, s, rng)
    cache = batch.cache(latents, s.cw, s.page, cdtype)
    width = s.kv + s.rope
    meant_cache = np.zeros((batch.pages, s.page, width), np.float32)
    for table, rows in zip(batch.table, latents, strict=True):
        for t, row in enumerate(rows[:, :width]):
            meant_cache[table[t // s.page], t % s.page] = rounded(row[None], cdtype)[0]
    used = np.where(batch.table < 0, 0, batch.table)
    q, angles = normal(rng, n, s.heads * (s.nope + s.rope)), normal(rng, n, s.rope)
    uk, meant_uk = weight(rng, (s.heads, s.kv, s.nope), wdtype)
    uv, meant_uv = weight(rng, (s.heads, s.v, s.kv), wdtype)
    values = {
        Value("q", TensorType("f32", ("n", q.shape[1]))): q,
        Value("angles", TensorType("f32", ("n", s.rope))): angles,
        Value("cache", TensorType(cdtype, ("pages", s.page, width)), "state"): cache,
        Value("w_uk", TensorType(wdtype, uk.shape if wdtype != FP8 else (s.heads, s.kv, s.nope)), "param"): uk,
        Value("w_uv", TensorType(wdtype, uv.shape if wdtype != FP8 else (s.heads, s.v, s.kv)), "param"): uv,
        Value("seq", TensorType("i32", ("n",))): batch.seq,
        Value("pos", TensorType("i32", ("n",))): batch.pos,
        Value("table", TensorType("i32", ("b", "p"))): batch.table,
    }
    op = OPS["mla_prefill" if graph == "prefill" else "mla_decode"]
    attrs = {"scale": 0.21, "interleaved": interleaved}
    node = Node(op, tuple(values), attrs, (Value("y", TensorType("f32", ("n", s.heads * s.v))),))
    emitter = Run(gpu(device), values, n, graph)
    [variant] = ATTENTION[op.name]
    target = GpuTarget(KINDS[device], frozenset(), "x86_64-linux", device)
    got = variant.lower(emitter, node, target)
    assert emitter.launches == (5 if graph == "prefill" else 3 if KINDS[device].replay else 4)
    for i in (0, n // 2):
        row = {v: a[i : i + 1] if v.type.shape[0] == "n" else a for v, a in values.items()}
        alone = variant.lower(Run(gpu(device), row, 1, graph), node, target)
        assert np.array_equal(alone[0], got[i])
    want = op.meaning(q, angles, meant_cache, meant_uk, meant_uv, batch.seq, batch.pos, used, **attrs)
    return error(got, want)


@pytest.mark.parametrize("graph", ["decode", "prefill"])
def test_cuda(gpu: Any, graph: str) -> None:
    assert attended(gpu, "cuda", Sizes(3, 20, 6, 40, 24, 16), graph, "bf16", "bf16", True) < ROUNDED
    assert attended(gpu, "cuda", Sizes(5, 16, 8, 48, 24, 16), graph, "f32", "f32", False) < EXACT


@pytest.mark.parametrize("graph", ["decode", "prefill"])
def test_metal(gpu: Any, graph: str) -> None:
    assert attended(gpu, "metal", Sizes(3, 20, 6, 40, 24, 16), graph, "bf16", "q8", True) < EXACT
    assert attended(gpu, "metal", Sizes(9, 128, 8, 128, 128, 7), graph, FP8, "f16", False) < EXACT


@pytest.mark.parametrize("graph", ["decode", "prefill"])
def test_webgpu(gpu: Any, graph: str) -> None:
    assert attended(gpu, "webgpu", Sizes(3, 20, 6, 40, 24, 16), graph, "f16", "f16", True) < EXACT
