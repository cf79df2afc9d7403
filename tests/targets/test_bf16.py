"""Products of bf16 where rows are rounded too: emulated everywhere, and with the machine's own where it has them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deepzig.artifacts.machines import MACHINES
from deepzig.targets.cpu.attention import mla_absorb, mla_lift
from deepzig.targets.cpu.features import CpuTarget
from deepzig.targets.cpu.layout import pack_columns, pack_gate_up
from deepzig.targets.cpu.linear import gated_proj, proj
from deepzig.targets.cpu.moe import moe

from .conftest import Array, compile_for, loops
from .latents import SIZES, Sizes, error, rotate
from .rounded_rows import HOW, Level, exact, halves, near, normal

LEVELS = ("amx", "avx512-bf16")
TOLERANCE = 1e-6
"""f32 sums of exact products of the rounded rows; norm-relative."""
ROUNDED_AGAIN = 1e-4
"""Where an f32 result is rounded for the next product: what lies between two of 8 bits may become either."""


@pytest.fixture(params=[(name, how) for name in LEVELS for how in HOW], ids="-".join)
def level(request: pytest.FixtureRequest, tmp_path: Path) -> Level:
    return Level(*request.param, tmp_path)


@pytest.mark.parametrize(
    ("k", "n", "begin", "extra"),
    [(64, 64, 0, 0), (197, 83, 3, 2), (33, 17, 16, 0), (7, 5, 0, 1), (1, 33, 0, 0), (1061, 58, 0, 0)],
)  # fmt: skip
def test_proj(level: Level, threads: Callable[[int], None], k: int, n: int, begin: int, extra: int) -> None:
    """Against float64, and the same bits for a row alone and among others, with one thread and two."""
    rng = np.random.default_rng(k * n)
    width, w, bias = begin + k + extra, halves(rng, n, k), normal(rng, n)
    run = level(
        proj(k, n, "bf16", x_width=width, begin=begin, norm_eps=None, bias=True, residual=True, vectors=level.vectors)
    )
    x, residual = normal(rng, 70, width), normal(rng, 70, n)
    x[:, :begin] = x[:, begin + k :] = np.nan  # what is beside is not read
    all_rows = np.full((70, n), np.nan, np.float32)
    run(x, pack_columns(w), bias, residual, all_rows)
    want = near(x[:, begin : begin + k]) @ exact(w).T
    assert error(all_rows, want + bias + residual) <= TOLERANCE
    for count in (1, 2):
        threads(count)
        for rows in (1, 2, 3, 8, 9, 16, 17, 32, 33, 69):
            part = slice(70 - rows, 70)
            y = np.full((rows, n), np.nan, np.float32)
            run(x[part], pack_columns(w), bias, residual[part], y)
            assert np.array_equal(y, all_rows[part])


def test_rows_are_rounded_to_nearest_even(level: Level) -> None:
    """Halfway cases of both kinds, and numbers that become infinite; a weight of one picks each out."""
    k = 40
    bits = np.random.default_rng(2).integers(0x3F00, 0x4100, (6, k)).astype(np.uint32) << 16
    bits |= np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)[:, None]
    x = bits.view(np.float32)
    x[5, 7] = np.finfo(np.float32).max
    kernel = proj(k, k, "bf16", x_width=k, begin=0, norm_eps=None, bias=False, residual=False, vectors=level.vectors)
    run = level(kernel)
    ones = np.where(np.eye(k, dtype=bool), 0x3F80, 0).astype(np.uint16)
    y = np.full((6, k), np.nan, np.float32)
    run(x[:5], pack_columns(ones), y[:5])
    assert np.array_equal(y[:5], near(x[:5]))
    run(x[5:], pack_columns(ones[7:8].repeat(k, 0)), y[5:])
    assert np.isinf(y[5]).all()


def test_norm_and_gate(level: Level) -> None:
    rng = np.random.default_rng(11)
    k, i, eps = 101, 67, 1e-3
    run = level(gated_proj(k, i, "bf16", norm_eps=eps, vectors=level.vectors))
    gate, up, weight = halves(rng, i, k), halves(rng, i, k), normal(rng, k)
    x = normal(rng, 70, k)
    h = near(x / np.sqrt((x.astype(np.float64) ** 2).mean(-1, keepdims=True) + eps) * weight)
    opened = h @ exact(gate).T
    all_rows = np.full((70, i), np.nan, np.float32)
    run(x, pack_gate_up(gate, up), weight, all_rows)
    assert error(all_rows, opened / (1 + np.exp(-opened)) * (h @ exact(up).T)) <= ROUNDED_AGAIN
    for rows in (1, 5, 19, 35):
        y = np.full((rows, i), np.nan, np.float32)
        run(x[:rows], pack_gate_up(gate, up), weight, y)
        assert np.array_equal(y, all_rows[:rows])


class Moe:
    """The kernel of a mixture, and its weights."""

    def __init__(self, level: Level) -> None:
        self.hidden, self.width, self.experts, self.top_k, self.shared = 101, 70, 6, 2, 1
        every = self.experts + self.shared
        rng = np.random.default_rng(8)
        self.gate, self.up = (halves(rng, every, self.width, self.hidden) for _ in range(2))
        self.down = halves(rng, every, self.hidden, self.width)
        sizes = self.hidden, self.width, self.experts, self.top_k, self.shared
        self.run = level(moe(*sizes, "bf16", "bf16", residual=True, vectors=level.vectors))

    def __call__(self, x: Array, ids: Array, weights: Array, residual: Array) -> Array:
        y = np.full((len(x), self.hidden), np.nan, np.float32)
        self.run(x, ids, weights, pack_gate_up(self.gate, self.up), pack_columns(self.down), residual, y)
        return y

    def meaning(self, x: Array, ids: Array, weights: Array, residual: Array) -> Any:
        y = residual.astype(np.float64)
        for row in range(len(x)):
            always = [(e, 1.0) for e in range(self.experts, len(self.gate))]
            for e, weight in [*zip(ids[row], weights[row], strict=True), *always]:
                opened, up = (exact(w[e]) @ near(x[row]) for w in (self.gate, self.up))
                hidden = (opened / (1 + np.exp(-opened)) * up).astype(np.float32)
                y[row] += weight * (exact(self.down[e]) @ near(hidden))
        return y


def test_moe(level: Level, threads: Callable[[int], None]) -> None:
    """Against its meaning, and the same bits for a row alone and among others, with one thread and two."""
    layer, rng, rows = Moe(level), np.random.default_rng(9), 41
    ids = np.stack([rng.permutation(layer.experts)[: layer.top_k] for _ in range(rows)]).astype(np.int32)
    weights = rng.uniform(0.1, 1, (rows, layer.top_k)).astype(np.float32)
    x, residual = normal(rng, rows, layer.hidden), normal(rng, rows, layer.hidden)
    y = layer(x, ids, weights, residual)
    assert error(y, layer.meaning(x, ids, weights, residual)) <= ROUNDED_AGAIN
    for count in (1, 2):
        threads(count)
        for size in (1, 2, 5, rows):
            part = slice(rows - size, rows)
            assert np.array_equal(layer(x[part], ids[part], weights[part], residual[part]), y[part])


@pytest.mark.parametrize("s", SIZES[1:3], ids=lambda s: f"h{s.heads}-nope{s.nope}-kv{s.kv}-v{s.v}")
def test_absorb_and_lift(level: Level, threads: Callable[[int], None], s: Sizes) -> None:
    rng, n = np.random.default_rng(3), 21
    q, angles = normal(rng, n, s.heads * (s.nope + s.rope)), normal(rng, n, s.rope)
    latent = normal(rng, n, s.heads, s.cl)
    latent[..., s.kv :] = np.nan
    w_uk, w_uv = halves(rng, s.heads, s.kv, s.nope), halves(rng, s.heads, s.v, s.kv)
    absorb = level(mla_absorb(s.heads, s.nope, s.rope, s.kv, "bf16", True, vectors=level.vectors))
    lift = level(mla_lift(s.heads, s.kv, s.v, "bf16", vectors=level.vectors))

    def run(part: slice) -> tuple[Array, Array]:
        count = len(q[part])
        absorbed = np.full((count, s.heads, s.cw), np.nan, np.float32)
        out = np.full((count, s.heads * s.v), np.nan, np.float32)
        absorb(q[part], angles[part], pack_columns(w_uk), absorbed)
        lift(latent[part], pack_columns(w_uv), out)
        return absorbed, out

    absorbed, out = run(slice(n))
    heads = q.reshape(n, s.heads, -1)
    want = np.einsum("nhd,hcd->nhc", near(heads[..., : s.nope]), exact(w_uk))
    assert error(absorbed[..., : s.kv], want) <= TOLERANCE
    turned = rotate(heads[..., s.nope :].astype(np.float64), angles[:, None].astype(np.float64), True)
    assert error(absorbed[..., s.kv : s.kv + s.rope], turned) <= TOLERANCE
    assert not absorbed[..., s.kv + s.rope :].any()
    want = np.einsum("nhc,hvc->nhv", near(latent[..., : s.kv]), exact(w_uv)).reshape(n, -1)
    assert error(out, want) <= TOLERANCE
    for count in (1, 2):
        threads(count)
        for rows in (1, 3, 17):
            part = slice(n - rows, n)
            assert all(np.array_equal(y, whole[part]) for y, whole in zip(run(part), (absorbed, out), strict=True))


def test_instructions() -> None:
    """Products of pairs for bf16 only, and only for the level that has them; weights come straight from memory."""

    def code(level: str, wdtype: str) -> str:
        target = CpuTarget(MACHINES[level].features)
        kernel = proj(
            1024, 64, wdtype, x_width=1024, begin=0, norm_eps=None, bias=False, residual=False, vectors=target.vectors
        )  # fmt: skip
        return str(compile_for(kernel, target.tvm_target())[0].mod.inspect_source("asm"))

    pairs = r"\svdpbf16ps\s"
    for level, wdtype in [("avx512-vnni", "bf16"), ("avx512-bf16", "f16"), ("avx512-bf16", "f32")]:
        assert not re.search(pairs, code(level, wdtype))
    inner = [loop for loop in loops(code("avx512-bf16", "bf16")) if re.search(pairs, loop)]
    assert {len(re.findall(pairs, loop)) // loop.count("prefetch") for loop in inner} == {1, 4}  # a row, a tile
    assert not any(re.search(r"vfmadd|vpslld|vpsrld", loop) for loop in inner)
