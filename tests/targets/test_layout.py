"""Packed weights, checked element by element against the layout's definition."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from deepzig.ir import TensorType
from deepzig.targets.cpu.features import CpuTarget, Vectors
from deepzig.targets.cpu.layout import pack_columns, pack_gate_up, packed_type

SHAPES = [(16, 2), (17, 1), (1, 1), (33, 7), (3, 15, 6), (2, 3, 40, 9)]


def random_weight(shape: tuple[int, ...], dtype: str) -> Any:
    rng = np.random.default_rng(sum(shape))
    if dtype == "f32":
        return rng.standard_normal(shape, np.float32)
    if dtype == "f16":
        return rng.standard_normal(shape).astype(np.float16)
    return rng.integers(1, 2**16, shape, np.uint16)


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_element(shape: tuple[int, ...], dtype: str) -> None:
    weight = random_weight(shape, dtype)
    packed = pack_columns(weight)
    kind = packed_type(TensorType(dtype, shape))
    assert packed.shape == kind.shape
    assert packed.dtype == {"f32": np.float32, "u32": np.uint32}[kind.dtype]
    expected = np.zeros_like(packed)
    bits = weight if dtype == "f32" else weight.view(np.uint16).astype(np.uint32)
    for *lead, n, k in np.ndindex(shape):
        element = bits[(*lead, n, k)]
        if dtype == "f32":
            expected[(*lead, n // 16, k, n % 16)] = element
        else:
            expected[(*lead, n // 16, k // 2, n % 16)] |= np.uint32(element << 16 * (k % 2))
    assert np.array_equal(packed, expected)


def test_not_contiguous_weight() -> None:
    weight = random_weight((3, 8, 35), "bf16").swapaxes(-1, -2)
    assert np.array_equal(pack_columns(weight), pack_columns(weight.copy()))


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_gate_and_up_alternate(dtype: str) -> None:
    gate, up = random_weight((2, 37, 5), dtype), random_weight((2, 37, 5), dtype)[::-1]
    packed = pack_gate_up(gate, up)
    assert packed.shape == (2, 3, 2, 5 if dtype == "f32" else 3, 16)
    assert np.array_equal(packed[:, :, 0], pack_columns(gate))
    assert np.array_equal(packed[:, :, 1], pack_columns(up))


@pytest.mark.parametrize(
    ("features", "vectors", "tile"),
    [
        ({"avx2", "fma", "f16c"}, Vectors(16, 8, "avx2"), (4, 1)),
        ({"avx2", "avx512f", "avx512bw"}, Vectors(32, 16, "avx512"), (8, 2)),
        ({"neon"}, Vectors(32, 4), (4, 1)),
        (set(), Vectors(16, 4), (2, 1)),
    ],
)
def test_tiles_fit_the_registers(features: set[str], vectors: Vectors, tile: tuple[int, int]) -> None:
    cpu = CpuTarget(frozenset(features))
    assert cpu.vectors == vectors
    assert cpu.vectors.tile == tile


def test_cache_rows_are_whole_vectors() -> None:
    cpu = CpuTarget(frozenset())
    assert cpu.state_type(TensorType("bf16", ("pages", 64, 577))) == TensorType("bf16", ("pages", 64, 592))
