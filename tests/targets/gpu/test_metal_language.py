"""The Metal Shading Language that kernels become: what is parsed, and what is found to be wrong."""

from __future__ import annotations

import re
from typing import Any

import pytest
import tvm
from tvm.script import tirx as T

from deepzig.targets.emit import kernel, store, symbols
from deepzig.targets.gpu.device import METAL, GpuTarget
from deepzig.targets.gpu.emit import barrier, block_max, block_sum, launch, registers, shared
from deepzig.targets.gpu.units import UNITS

from .metal_language import errors, preprocessed, sources

KERNEL = """#include <metal_stdlib>
using namespace metal;
static inline void own(thread float* x) { x[0] = 1.0f; }
static inline void common(threadgroup float* x) { x[0] = 1.0f; }
kernel void k(device float* y [[ buffer(0) ]], constant int& n [[ buffer(1) ]],
    uint3 block [[threadgroup_position_in_grid]], uint3 threadIdx [[thread_position_in_threadgroup]]) {
  threadgroup float s[8];
  thread float v[4];
  @
}
"""
LINE = 9


@pytest.mark.parametrize(
    "statement",
    [
        "own(v); own(&(v[1])); common(s); common(&(s[threadIdx.x]));",
        "float4 a = float4(1.0f, v[0], y[3], s[n]); y[0] = a.x + a[3]; *(threadgroup float4*)(s + 4) = a;",
        "uint w = as_type<uint>(y[0]); y[1] = as_type<float>(w << 16); char4 c = as_type<char4>(w); y[2] = (float)c.y;",
        "half h = ((half)v[0]); half2 p = half2(h, 1.5h); y[0] = ((float)p.y) + exp(y[1]) / precise::exp(y[2]);",
        "y[0] = max(y[0], 1.0f) + min(3, n) + select(1.0f, 2.0f, n > 3) + simd_shuffle_xor(y[1], ushort(3));",
        "for (int i = 0; i < n; ++i) { if (((i * 96) + ((int)threadIdx.x)) < 333) continue; y[i] = INFINITY; return; }",
    ],
)
def test_right(statement: str) -> None:
    assert errors(KERNEL.replace("@", statement)) == []


@pytest.mark.parametrize(
    ("statement", "what"),
    [
        ("own(s);", "3: error: no matching function for call to 'own'"),
        ("common(v);", "3: error: no matching function for call to 'common'"),
        ("thread float* p = y; p[0] = 1;", "17: error: cannot initialize a variable of type '__private float *"),
        ("float* p = v; p[0] = 1;", " error: a pointer without an address space"),
        ("uint w = 3; y[0] = (*(float *)(&(w)));", " error: a pointer without an address space"),
        ("y[0] = nearbyint(y[1]);", "10: error: use of undeclared identifier 'nearbyint'"),
        ("y[0] = max(y[0], 1);", "10: error: call to 'max' is ambiguous"),
        ("bfloat b; y[0] = b;", "3: error: use of undeclared identifier 'bfloat'"),
        ("if constexpr (true) y[0] = 1;", "6: error: constexpr if is incompatible with C++ standards before C++17"),
        ("y[0] = v;", "10: error: assigning to 'float' from incompatible type '__private float[4]'"),
        ("n = 3;", "5: error: read-only variable is not assignable"),
        ("y[0] = 1.0f", "14: error: expected ';' after expression"),
    ],
)
def test_wrong(statement: str, what: str) -> None:
    (error,) = errors(KERNEL.replace("@", statement))
    assert error.startswith(f"{LINE}:{what}")


@pytest.mark.parametrize(
    "wrong",
    ["half h = as_type<half>(y[0]);", "float4 q = float4(1.0f, 2.0f, 3.0f); y[0] = q.x;"],
)
def test_wrong_sizes(wrong: str) -> None:
    (error,) = errors(KERNEL.replace("@", wrong))
    assert "static assertion failed" in error


def everything(threads: int = 96, width: int = 213) -> Any:
    """A kernel with most of what the builder can emit, and its matrix unit."""
    unit = UNITS[METAL.unit("bf16")]
    with kernel("everything") as f:
        (n,) = symbols("n")
        x, w, y = f.tensor("x", "f32", n, width), f.tensor("w", "u32", 8, 8), f.tensor("y", "f32", n, width)
        with launch(threads, n, 3) as t:
            row = t.block[0]
            tile = shared(8, 8)
            with t.each(64) as i:
                word = T.bind(w[i // 8, i % 8])
                high = T.reinterpret("float32", T.bitwise_and(word, T.uint32(0xFFFF0000)))
                low = T.Cast("float32", T.reinterpret("float16", T.Cast("uint16", word)))
                store(tile, high + low, i // 8, i % 8)
            barrier()
            sums = unit.zero()
            a = unit.load_a(t.lane, lambda i, k: tile[i, k])
            unit.multiply(sums, a, unit.load_b(t.lane, lambda j, k: tile[k, j]))
            codes = registers(4, dtype="int32")
            for i in range(4):
                store(codes, T.Cast("int32", T.round(x[row, i] * T.float32(127))), i)
            total = block_sum(t, T.exp(x[row, t.thread] - block_max(t, x[row, t.thread])))
            with t.each(width) as i:
                chosen = tvm.tirx.Select(i % 3 == 0, T.sqrt(total), T.rsqrt(total))
                store(y, T.max(chosen, sums[0]) + T.Cast("float32", codes[0]) * T.float32(0.1), row, i)
    return tvm.IRModule({"everything": f.function})


def test_what_the_builder_emits() -> None:
    executable = GpuTarget(METAL, frozenset(), "x86_64-linux", "metal").compile(everything())
    texts = sources(executable)
    assert set(texts) == {"everything_kernel"}
    assert "dz_simd_mma_f32(" in texts["everything_kernel"]
    assert {name: errors(text) for name, text in texts.items()} == {"everything_kernel": []}


def test_no_fast_math() -> None:
    """TVM's runtime asks for it; the prelude takes it back."""
    (text,) = sources(GpuTarget(METAL, frozenset(), "x86_64-linux", "metal").compile(everything())).values()
    assert "#pragma METAL fp math_mode(safe)" in text[: text.index("kernel void")]
    body = preprocessed(text).rpartition("kernel void")[2]
    used = set(re.findall(r"(\w*:*)\b(exp|sqrt|rsqrt)\(", body))
    assert used == {("precise::", "exp"), ("precise::", "sqrt")}  # TVM makes a quotient of rsqrt
