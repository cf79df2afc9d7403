"""The device functions of the shim against the documents that say what the hardware's do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tvm.script import tirx as T

from deepzig.targets.emit import kernel, store
from deepzig.targets.gpu.emit import device, launch, registers

from .conftest import Array, SoftwareGpu

Gpu = Callable[[str], SoftwareGpu]
LANES = 32
DEVICES = ("cuda", "metal")


def exchange(name: str, dtype: str) -> Any:
    """y[i] = the device function of x[i] and m[i], by one subgroup and a half."""
    returns = {"f32": "float32", "i32": "int32"}[dtype]
    with kernel(name, dtype) as f:
        x, m, y = f.tensor("x", dtype, 96), f.tensor("m", "i32", 96), f.tensor("y", dtype, 96)
        with launch(96, 1) as t:
            store(y, device(name, x[t.thread], m[t.thread], returns=returns), t.thread)
    return f.function


def multiply(name: str, sums: int, a: int, b: int, words: str = "u32", result: str = "f32") -> Any:
    """The sums after two products by the device function, on the registers [2 subgroups, LANES, n] that are given."""
    with kernel(name) as f:
        tensors = [f.tensor("a", words, 2 * LANES, a), f.tensor("b", words, 2 * LANES, b)]
        tensors.append(f.tensor("sums", result, 2 * LANES, sums))
        with launch(2 * LANES, 1) as t:
            copies = []
            for tensor in tensors:
                copies.append(registers(int(tensor.shape[1]), dtype=tensor.dtype))
                for i in range(int(tensor.shape[1])):
                    store(copies[-1], tensor[t.thread, i], i)
            for _ in range(2):
                device(name, *(T.address_of(copies[i][0]) for i in (2, 0, 1)))
            for i in range(sums):
                store(tensors[2], copies[2][i], t.thread, i)
    return f.function


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", ["f32", "i32"])
def test_shuffles(gpu: Gpu, device: str, dtype: str) -> None:
    rng = np.random.default_rng(2)
    x = rng.integers(1, 1000, 96).astype({"f32": np.float32, "i32": np.int32}[dtype])
    own, first = np.arange(96) % LANES, np.arange(96) // LANES * LANES
    mask, source = (rng.integers(1, LANES, 96, np.int32) for _ in range(2))
    run = gpu(device)
    for function, given, lane in (("shuffle_xor", mask, own ^ mask), ("shuffle", source, source)):
        y = np.empty_like(x)
        run(exchange(function, dtype))(x, given, y)
        assert np.array_equal(y, x[first + lane])


# PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type" and "... mma.m16n8k32": element i of the
# fragment of a lane is at (row, column).


def ptx_a(lane: int, i: int, per_word: int) -> tuple[int, int]:
    row = lane // 4 + (8 if i // per_word % 2 else 0)
    return row, lane % 4 * per_word + i % per_word + (4 * per_word if i >= 2 * per_word else 0)


def ptx_b(lane: int, i: int, per_word: int) -> tuple[int, int]:
    return lane % 4 * per_word + i % per_word + (4 * per_word if i >= per_word else 0), lane // 4


def ptx_c(lane: int, i: int) -> tuple[int, int]:
    return lane // 4 + (8 if i >= 2 else 0), lane % 4 * 2 + i % 2


def fragments(matrices: Array, place: Callable[[int, int], tuple[int, int]], count: int) -> Array:
    """What each lane holds of [subgroups, rows, columns]: [subgroups, LANES, count]."""
    parts = [[m[place(lane, i)] for i in range(count)] for m in matrices for lane in range(LANES)]
    return np.array(parts, matrices.dtype)


STORED: dict[str, Callable[[Array], Array]] = {
    "bf16": lambda x: (x.view(np.uint32) >> 16).astype(np.uint16),
    "f16": lambda x: x.astype(np.float16).view(np.uint16),
    "s8": lambda x: np.clip(x * 60, -128, 127).astype(np.int8),
}
MEANT: dict[str, Callable[[Array], Array]] = {
    "bf16": lambda x: (x.astype(np.uint32) << 16).view(np.float32).astype(np.float64),
    "f16": lambda x: x.view(np.float16).astype(np.float64),
    "s8": lambda x: x.astype(np.int64),
}


@pytest.mark.parametrize("element", STORED)
def test_mma_has_the_fragments_of_the_ptx_isa(gpu: Gpu, element: str) -> None:
    rng = np.random.default_rng(3)
    per_word = 4 if element == "s8" else 2
    a, b = (STORED[element](rng.standard_normal((2, *s), np.float32)) for s in ((16, 8 * per_word), (8 * per_word, 8)))
    c = rng.integers(-9, 9, (2, 16, 8)).astype(np.int32 if element == "s8" else np.float32)
    held = [
        fragments(a, lambda lane, i: ptx_a(lane, i, per_word), 4 * per_word).view(np.uint32),
        fragments(b, lambda lane, i: ptx_b(lane, i, per_word), 2 * per_word).view(np.uint32),
        fragments(c, ptx_c, 4),
    ]
    gpu("cuda")(multiply(f"mma_{element}", 4, 4, 2, result="i32" if element == "s8" else "f32"))(*held)
    expected = c + 2 * (MEANT[element](a) @ MEANT[element](b))
    if element == "s8":
        assert np.array_equal(held[2], fragments(expected, ptx_c, 4))
    else:
        np.testing.assert_allclose(held[2], fragments(expected, ptx_c, 4), rtol=1e-5, atol=1e-5)


def simd_place(lane: int, i: int) -> tuple[int, int]:
    """MLX, mlx/backend/metal/kernels/steel/gemm/mma.h: `get_coord` of 8x8 fragments."""
    quad = lane // 4
    return (quad & 4) + lane // 2 % 4, (quad & 2) * 2 + lane % 2 * 2 + i


@pytest.mark.parametrize("element", ["f32", "f16"])
def test_simd_mma_has_the_fragments_that_mlx_documents(gpu: Gpu, element: str) -> None:
    rng = np.random.default_rng(4)
    a, b, c = (rng.standard_normal((2, 8, 8), np.float32) for _ in range(3))
    if element == "f16":
        a, b = a.astype(np.float16), b.astype(np.float16)
    held = [fragments(m, simd_place, 2) for m in (a, b, c)]
    if element == "f16":
        held[:2] = [h.view(np.uint32) for h in held[:2]]
    words, count = ("f32", 2) if element == "f32" else ("u32", 1)
    gpu("metal")(multiply(f"simd_mma_{element}", 2, count, count, words))(*held)
    expected = c + 2 * (a.astype(np.float64) @ b.astype(np.float64))
    np.testing.assert_allclose(held[2], fragments(expected, simd_place, 2), rtol=1e-5, atol=1e-5)
