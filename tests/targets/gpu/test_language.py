"""What TVM writes for CUDA and Metal, compiled as C++, means what the same expressions mean in numpy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tvm.script import tirx as T
from tvm.script.ir_builder import tirx as builder

from deepzig.targets.emit import kernel, store, symbols, when
from deepzig.targets.gpu.emit import launch

from .conftest import Run, SoftwareGpu

Gpu = Callable[[str], SoftwareGpu]
DEVICES = pytest.mark.parametrize("device", ["cuda", "metal"])


def f32(x: Any) -> Any:
    return T.Cast("float32", x)


def f16(x: Any) -> Any:
    return T.Cast("float16", x)


def i32(x: Any) -> Any:
    return T.Cast("int32", x)


def word(x: Any) -> Any:
    return T.reinterpret("uint32", x)


def bf16(x: Any) -> Any:
    """Rounded to bf16, ties to even."""
    bits = x.view(np.uint32)
    return (bits + 0x7FFF + (bits >> 16 & 1) & 0xFFFF0000).astype(np.uint32).view(np.float32)


FLOATS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "exp": (T.exp, np.exp),
    "exp2": (T.exp2, np.exp2),
    "log": (lambda x: T.log(T.fabs(x)), lambda x: np.log(abs(x))),
    "log2": (lambda x: T.log2(T.fabs(x)), lambda x: np.log2(abs(x))),
    "sqrt": (lambda x: T.sqrt(T.fabs(x)), lambda x: np.sqrt(abs(x))),
    "rsqrt": (lambda x: T.rsqrt(T.fabs(x)), lambda x: 1 / np.sqrt(abs(x))),
    "tanh": (T.tanh, np.tanh),
    "sigmoid": (T.sigmoid, lambda x: 1 / (1 + np.exp(-x))),
    "sin": (T.sin, np.sin),
    "cos": (T.cos, np.cos),
    "pow": (lambda x: T.pow(T.fabs(x), T.float32(1.5)), lambda x: abs(x) ** 1.5),
    "quotient": (lambda x: T.float32(3) / x, lambda x: 3 / x),
    "f16_exp": (lambda x: f32(T.exp(f16(x))), lambda x: np.exp(x.astype(np.float16).astype(np.float32))),
}
"""Expression -> the same in numpy, in f64."""

EXACT: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "floor": (T.floor, np.floor),
    "ceil": (T.ceil, np.ceil),
    "trunc": (T.trunc, np.trunc),
    "nearbyint": (T.nearbyint, np.rint),
    "fabs": (T.fabs, np.abs),
    "max": (lambda x: T.max(x, T.float32(0.2)), lambda x: np.maximum(x, np.float32(0.2))),
    "min": (lambda x: T.min(x, T.float32(0.2)), lambda x: np.minimum(x, np.float32(0.2))),
    "select": (lambda x: T.Select(x > T.float32(0), x, -x), np.abs),
    "if_then_else": (lambda x: T.if_then_else(x > T.float32(0), x, -x), np.abs),
    "finite": (lambda x: f32(T.isfinite(T.float32(1) / T.floor(x))), lambda x: np.isfinite(1 / np.floor(x))),
    "infinite": (lambda x: f32(T.isinf(T.float32(1) / T.floor(x))), lambda x: np.isinf(1 / np.floor(x))),
    "nan": (lambda x: f32(T.isnan(T.sqrt(x))), lambda x: x < 0),
    "infinity": (lambda x: T.max(T.float32(-np.inf), T.min(x, T.infinity("float32"))), lambda x: x),
    "least": (lambda x: T.max(x, T.min_value("float32")), lambda x: x),
    "to_i32": (lambda x: f32(i32(T.round(x * T.float32(9)))), lambda x: np.rint(x * np.float32(9))),
    "to_i8": (lambda x: f32(T.Cast("int8", x * T.float32(9))), lambda x: np.trunc(x * np.float32(9))),
    "to_f16": (lambda x: f32(f16(x) * T.float16(1.5)), lambda x: x.astype(np.float16) * np.float16(1.5)),
    "f16_max": (lambda x: f32(T.max(f16(x), T.float16(0.25))), lambda x: np.maximum(x.astype(np.float16), 0.25)),
    "f16_bits": (
        lambda x: f32(T.reinterpret("float16", T.Cast("uint16", word(x) >> T.uint32(18)))),
        lambda x: (x.view(np.uint32) >> 18).astype(np.uint16).view(np.float16),
    ),
    "bf16": (lambda x: f32(T.Cast("bfloat16", x)), bf16),
    "bits": (
        lambda x: T.reinterpret("float32", word(x) & T.uint32(0xFFFF0000)),
        lambda x: (x.view(np.uint32) & 0xFFFF0000).view(np.float32),
    ),
    "signed_shift": (
        lambda x: f32(T.reinterpret("int32", x) >> T.int32(20)),
        lambda x: x.view(np.int32) >> 20,
    ),
    "wrapping_product": (
        lambda x: f32((word(x) * T.uint32(0x9E3779B9)) >> T.uint32(12)),
        lambda x: (x.view(np.uint32) * np.uint32(0x9E3779B9)) >> 12,
    ),
    "high_product": (
        lambda x: f32(T.Cast("uint32", (T.Cast("uint64", word(x)) * T.uint64(0xD2511F53)) >> T.uint64(44))),
        lambda x: (x.view(np.uint32).astype(np.uint64) * np.uint64(0xD2511F53)) >> np.uint64(44),
    ),
    "popcount": (lambda x: f32(T.popcount(word(x))), lambda x: [int(b).bit_count() for b in x.view(np.uint32)]),
    "clz": (lambda x: f32(T.clz(word(x) >> T.uint32(3))), lambda x: [35 - int(b).bit_length() for b in x.view("u4")]),
    "floordiv": (
        lambda x: f32(T.floordiv(i32(x * T.float32(99)), 7)),
        lambda x: (x * np.float32(99)).astype(np.int32) // 7,
    ),
    "floormod": (
        lambda x: f32(T.floormod(i32(x * T.float32(99)), 7)),
        lambda x: (x * np.float32(99)).astype(np.int32) % 7,
    ),
}


def elementwise(name: str, function: Callable[[Any], Any]) -> Any:
    with kernel("elementwise", name) as f:
        (n,) = symbols("n")
        x, y = f.tensor("x", "f32", n), f.tensor("y", "f32", n)
        with launch(64, (n + 63) // 64) as t:
            i = t.block[0] * 64 + t.thread
            with when(i < n):
                store(y, function(x[i]), i)
    return f.function


@DEVICES
def test_expressions(gpu: Gpu, device: str) -> None:
    table = {**FLOATS, **EXACT}
    runs: list[Run] = gpu(device).all(*(elementwise(name, tir) for name, (tir, _) in table.items()))
    x = np.random.default_rng(5).standard_normal(301, np.float32) * 2
    with np.errstate(all="ignore"):
        for run, (name, (_, numpy)) in zip(runs, table.items(), strict=True):
            y = np.empty_like(x)
            run(x, y)
            if name in EXACT:
                assert np.array_equal(y, np.asarray(numpy(x)).astype(np.float32)), name
            else:
                tolerance = 1e-3 if name.startswith("f16") else 1e-6
                np.testing.assert_allclose(y, numpy(x.astype(np.float64)), tolerance, 1e-7, err_msg=name)


@DEVICES
def test_vectors(gpu: Gpu, device: str) -> None:
    """Loads, sums and stores of 2 and 4 neighbours at once."""
    cases = [(d, n) for d in ("float32", "uint32", "int32", "int8", "uint16", "float16") for n in (2, 4)]

    def doubled(dtype: str, lanes: int) -> Any:
        with kernel("doubled", dtype, lanes) as f:
            (n,) = symbols("n")
            x, y = (builder.arg(name, T.Buffer((n,), dtype)) for name in "xy")
            with launch(32, 1) as t, when(t.thread * lanes < n):
                place = T.ramp(t.thread * lanes, T.int64(1), lanes)
                builder.buffer_store(y, x[place] + x[place], [place])
        return f.function

    for (dtype, lanes), run in zip(cases, gpu(device).all(*(doubled(*case) for case in cases)), strict=True):
        x = np.random.default_rng(7).integers(1, 40, 32 * lanes - 8).astype(dtype)
        y = np.zeros_like(x)
        run(x, y)
        assert np.array_equal(y, x + x), dtype
