"""Products on AMX's tiles: emulated everywhere, and with the machine's own where it has them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deepzig.artifacts.cpu_features import detect
from deepzig.artifacts.machines import MACHINES
from deepzig.targets.cpu import amx
from deepzig.targets.cpu.features import CpuTarget, Vectors
from deepzig.targets.cpu.layout import pack_columns, pack_gate_up, pack_quantized
from deepzig.targets.cpu.linear import gated_proj, proj
from deepzig.targets.cpu.moe import moe_down, moe_gate_up, moe_sort

from .conftest import Array, Run, called, compile_for, loops
from .emulate import emulated
from .latents import error, to_bits, to_f32

AMX = CpuTarget(MACHINES["amx"].features)
V4 = CpuTarget(MACHINES["x86-64-v4"].features)
TOLERANCE = 1e-6
"""f32 sums of exact products of the rounded rows; norm-relative."""


@pytest.fixture(params=["emulated", "real"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Any], Run]:
    """Kernel -> function on numpy arrays."""
    if request.param == "emulated":
        return lambda kernel: emulated(kernel, AMX, tmp_path)
    if not AMX.features <= detect():
        pytest.skip("this machine has no AMX")

    def real(kernel: Any) -> Run:
        executable, name = compile_for(kernel, AMX.tvm_target())
        return lambda *arrays: called(executable[name], arrays)

    return real


def normal(rng: np.random.Generator, *shape: int) -> Array:
    return rng.standard_normal(shape, np.float32)


def halves(rng: np.random.Generator, *shape: int) -> Array:
    """The bits of a random weight."""
    return to_bits(normal(rng, *shape) / np.float32(np.sqrt(shape[-1])), "bf16")


def near(x: Array) -> Any:
    """Rounded to bf16, as float64."""
    return to_f32(to_bits(x, "bf16"), "bf16").astype(np.float64)


def exact(bits: Array) -> Any:
    return to_f32(bits, "bf16").astype(np.float64)


@pytest.mark.parametrize(
    ("k", "n", "begin", "extra"),
    [(64, 64, 0, 0), (197, 83, 3, 2), (33, 17, 16, 0), (7, 5, 0, 1), (320, 100, 0, 0), (1061, 58, 0, 0)],
)  # fmt: skip
def test_proj(make: Any, threads: Any, k: int, n: int, begin: int, extra: int) -> None:
    """Against float64, and the same bits for a row alone and among others, with one thread and two."""
    rng = np.random.default_rng(k * n)
    width, w, bias = begin + k + extra, halves(rng, n, k), normal(rng, n)
    run = make(
        proj(k, n, "bf16", x_width=width, begin=begin, norm_eps=None, bias=True, residual=True, vectors=AMX.vectors)
    )
    x, residual = normal(rng, 70, width), normal(rng, 70, n)
    all_rows = np.full((70, n), np.nan, np.float32)
    run(x, pack_columns(w), bias, residual, all_rows)
    want = near(x[:, begin : begin + k]) @ exact(w).T
    assert error(all_rows, want + bias + residual) <= TOLERANCE
    for count in (1, 2):
        threads(count)
        for rows in (1, 3, 16, 17, 32, 33):
            part = slice(70 - rows, 70)
            y = np.full((rows, n), np.nan, np.float32)
            run(x[part], pack_columns(w), bias, residual[part], y)
            assert np.array_equal(y, all_rows[part])


def test_many_rows(make: Any) -> None:
    """More than pass by the same weights at once."""
    rng = np.random.default_rng(3)
    k, n, rows = 70, 50, amx.PASS * amx.TILE[0] * 32 + 45
    x, w = normal(rng, rows, k), halves(rng, n, k)
    run = make(proj(k, n, "bf16", x_width=k, begin=0, norm_eps=None, bias=False, residual=False, vectors=AMX.vectors))
    y = np.full((rows, n), np.nan, np.float32)
    run(x, pack_columns(w), y)
    assert error(y, near(x) @ exact(w).T) <= TOLERANCE
    alone = np.full((3, n), np.nan, np.float32)
    run(x[-3:], pack_columns(w), alone)
    assert np.array_equal(alone, y[-3:])


def test_nothing_but_whole_tiles_is_multiplied(tmp_path: Path) -> None:
    """A row alone costs what 16 do; many rows come in pairs of tiles, and pass by all three blocks at once."""
    k, n = 96, 48
    run = emulated(
        proj(k, n, "bf16", x_width=k, begin=0, norm_eps=None, bias=False, residual=False, vectors=AMX.vectors),
        AMX,
        tmp_path,
    )
    rng = np.random.default_rng(1)
    w = pack_columns(halves(rng, n, k))
    for rows, products in ((1, 1 * 4), (16, 1 * 4), (17, 2 * 4), (32, 2 * 4), (40, 4 * 3), (65, 6 * 3)):
        run(normal(rng, rows, k), w, np.zeros((rows, n), np.float32))
        assert run.products() == (products * k // 32, 0)


def test_norm_and_gate(make: Any) -> None:
    rng = np.random.default_rng(11)
    k, i, eps = 101, 67, 1e-3
    run = make(gated_proj(k, i, "bf16", norm_eps=eps, vectors=AMX.vectors))
    gate, up, weight = halves(rng, i, k), halves(rng, i, k), normal(rng, k)
    for rows in (1, 19, 35):
        x = normal(rng, rows, k)
        h = near(x / np.sqrt((x.astype(np.float64) ** 2).mean(-1, keepdims=True) + eps) * weight)
        opened = h @ exact(gate).T
        y = np.full((rows, i), np.nan, np.float32)
        run(x, pack_gate_up(gate, up), weight, y)
        # what lies between two of 8 bits may become either, since the norm's last bits differ
        assert error(y, opened / (1 + np.exp(-opened)) * (h @ exact(up).T)) <= 1e-4


class Moe:
    """The kernels of a mixture, and its weights."""

    def __init__(self, make: Any, build: Any) -> None:
        self.hidden, self.width, self.experts, self.top_k, self.shared = 101, 70, 6, 2, 1
        every, self.slots = self.experts + self.shared, self.top_k + self.shared
        rng = np.random.default_rng(8)
        self.gate, self.up = (halves(rng, every, self.width, self.hidden) for _ in range(2))
        self.down = halves(rng, every, self.hidden, self.width)
        sizes = every, self.slots, "bf16"
        self.sort = build(moe_sort(self.experts, self.top_k, self.shared))
        self.gate_up = make(moe_gate_up(self.hidden, self.width, *sizes, vectors=AMX.vectors))
        self.last = make(moe_down(self.width, self.hidden, *sizes, residual=True, vectors=AMX.vectors))

    def __call__(self, x: Array, ids: Array, weights: Array, residual: Array) -> Array:
        rows = len(x)
        offsets = np.zeros(self.experts + self.shared + 1, np.int32)
        order, slot_weights = (np.zeros((rows, self.slots), kind) for kind in (np.int32, np.float32))
        self.sort(ids, weights, offsets, order, slot_weights)
        a = np.full((rows, self.slots, self.width), np.nan, np.float32)
        self.gate_up(x, offsets, order, pack_gate_up(self.gate, self.up), a)
        y = np.full((rows, self.hidden), np.nan, np.float32)
        self.last(a, offsets, order, slot_weights, pack_columns(self.down), residual, y)
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


def test_moe(make: Any, build: Any, threads: Any) -> None:
    """Against its meaning, and the same bits for a row alone and among others, with one thread and two."""
    layer, rng, rows = Moe(make, build), np.random.default_rng(9), 41
    ids = np.stack([rng.permutation(layer.experts)[: layer.top_k] for _ in range(rows)]).astype(np.int32)
    weights = rng.uniform(0.1, 1, (rows, layer.top_k)).astype(np.float32)
    x, residual = normal(rng, rows, layer.hidden), normal(rng, rows, layer.hidden)
    y = layer(x, ids, weights, residual)
    # of the hidden values some lie between two of 8 bits
    assert error(y, layer.meaning(x, ids, weights, residual)) <= 1e-4
    for count in (1, 2):
        threads(count)
        for size in (1, 2, 5, rows):
            part = slice(rows - size, rows)
            assert np.array_equal(layer(x[part], ids[part], weights[part], residual[part]), y[part])


@pytest.mark.parametrize("dtype", ["q8", "q4"])
def test_quantised_weights_have_the_bits_of_other_machines(make: Any, build: Any, threads: Any, dtype: str) -> None:
    rng = np.random.default_rng(6)
    k, n = 197, 83
    x, packed = normal(rng, 37, k), pack_quantized(normal(rng, n, k), dtype)

    def kernel(vectors: Vectors) -> Any:
        return proj(k, n, dtype, x_width=k, begin=0, norm_eps=None, bias=False, residual=False, vectors=vectors)

    here, there = build(kernel(Vectors(16, 8, "avx2"))), make(kernel(AMX.vectors))
    for count in (1, 2):
        threads(count)
        for rows in (1, 2, 16, 37):
            want, y = (np.full((rows, n), np.nan, np.float32) for _ in range(2))
            here(x[:rows], packed, want)
            there(x[:rows], packed, y)
            assert np.isfinite(y).all() and np.array_equal(y, want)


@pytest.mark.parametrize("dtype", ["q8", "q4"])
def test_single_rows_of_bytes_need_no_tiles(dtype: str, tmp_path: Path) -> None:
    k, n = 128, 48
    run = emulated(
        proj(k, n, dtype, x_width=k, begin=0, norm_eps=None, bias=False, residual=False, vectors=AMX.vectors),
        AMX,
        tmp_path,
    )
    rng = np.random.default_rng(1)
    w = pack_quantized(normal(rng, n, k), dtype)
    for rows, tiles in ((1, 0), (2, 1), (16, 1), (17, 2)):
        run(normal(rng, rows, k), w, np.zeros((rows, n), np.float32))
        assert run.products() == (0, tiles * 2 * 4)


def code(target: CpuTarget, wdtype: str) -> str:
    kernel = proj(
        1024, 64, wdtype, x_width=1024, begin=0, norm_eps=None, bias=False, residual=False, vectors=target.vectors
    )  # fmt: skip
    return str(compile_for(kernel, target.tvm_target())[0].mod.inspect_source("asm"))


def test_instructions() -> None:
    """Tiles for bf16 only, and only for the level that has them; a product needs one load, and none of sums."""
    text = code(AMX, "bf16")
    assert "tdpbf16ps" not in code(V4, "bf16") and "tdpbf16ps" not in code(AMX, "f16") + code(AMX, "f32")
    inner = [loop for loop in loops(text) if loop.count("tdpbf16ps") == 4]
    assert inner and all(loop.count("tileload") == 4 and loop.count("prefetch") == 2 * amx.ROWS for loop in inner)
    assert not any("tilestore" in loop or "mm, " in loop for loop in inner)


def test_a_configuration_is_written_before_the_threads_start() -> None:
    """They share the memory that it lies in: one that wrote it could take it from another that reads it."""
    functions = re.split(r"^\s*\.type\s+\S+,@function", code(AMX, "bf16"), flags=re.M)
    tasks = [f for f in functions if "ldtilecfg" in f]
    assert len(tasks) == 2  # for few rows and for many
    for task in tasks:
        assert task.index("ldtilecfg") < task.index("tileload") < task.rindex("tilestored") < task.index("tilerelease")
    written = re.compile(r"movb\s+\$64, \d+\(")
    assert any(map(written.search, functions)) and not any(map(written.search, tasks))
