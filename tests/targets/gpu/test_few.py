"""Products of few rows on GPUs against the meaning of their ops."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from deepzig.ir import OPS
from deepzig.ir.fp8 import FP8, quantize_fp8, values_fp8
from deepzig.ir.quantize import QUANTIZED, QuantizedMatrix
from deepzig.targets.gpu.few import few, heads_product
from deepzig.targets.gpu.layout import pack_rows
from deepzig.targets.gpu.product import Product

from .conftest import KINDS

TOLERANCE = 2e-6
"""Sums in f32 of a few hundred products; norm-relative."""
NORMED = 1e-3
"""Where a normed row is rounded: a few of its codes are one off, for its norm is rounded otherwise."""
DEVICES = ("cuda", "metal", "webgpu")
DTYPES = ("f32", "bf16", "f16", "q8", "q4", FP8)


def normal(rng: np.random.Generator, *shape: int) -> Any:
    return rng.standard_normal(shape, np.float32)


def error(actual: Any, expected: Any) -> float:
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def weight(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> tuple[Any, Any]:
    """A random weight as the checkpoint has it, and what an op multiplies by, in float64 if it is exact."""
    w = normal(rng, *shape) / np.float32(np.sqrt(shape[-1]))
    if dtype in QUANTIZED:
        return w, QuantizedMatrix.of(w, dtype)
    if dtype == FP8:
        stored = quantize_fp8(w)
        return stored, values_fp8(stored, shape[-1]).astype(np.float64)
    if dtype == "f16":
        return w.astype(np.float16), w.astype(np.float16).astype(np.float64)
    if dtype == "bf16":
        bits = (w.view(np.uint32) >> 16).astype(np.uint16)
        return bits, (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return w, w.astype(np.float64)


def products(dtype: str) -> list[Product]:
    """Odd sizes; rows that are no multiples of 16 bytes, with a norm; whole turns of all lanes, and more."""
    return [
        Product(37, 1, dtype, 42, 3, bias=True),
        Product(290, 21, dtype, 292, 2, norm_eps=1e-5, residual=True),
        Product(1092, 9, dtype, 1100, 4, bias=True, residual=True),
    ]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_proj(gpu: Any, dtype: str, device: str) -> None:
    compiled = gpu(device).all(*(few(KINDS[device], product) for product in products(dtype)))
    for run, product in zip(compiled, products(dtype), strict=True):
        rng = np.random.default_rng(product.k)
        stored, w = weight(rng, (product.n, product.k), dtype)
        packed = pack_rows(stored, dtype)
        assert product.x_width is not None
        x, residual = 3 * normal(rng, 19, product.x_width), normal(rng, 19, product.n) if product.residual else None
        norm = normal(rng, product.k) if product.norm_eps else None
        bias = normal(rng, product.n) if product.bias else None

        def result(rows: slice, run=run, product=product, packed=packed, x=x, extras=(norm, bias, residual)) -> Any:
            y = np.full((rows.stop - rows.start, product.n), np.nan, np.float32)
            norm, bias, residual = extras
            added = None if residual is None else residual[rows]
            run(x[rows], packed, *(e for e in (norm, bias, added) if e is not None), y)
            return y

        want = OPS["proj"].meaning(x, w, norm, bias, residual, begin=product.begin, eps=product.norm_eps or 0)
        whole = result(slice(0, 19))
        assert error(whole, want) <= (NORMED if product.norm_eps and dtype in QUANTIZED else TOLERANCE)
        for rows in (slice(0, 0), slice(0, 1), slice(3, 5), slice(7, 13)):
            assert np.array_equal(result(rows), whole[rows])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_gated(gpu: Any, dtype: str, device: str) -> None:
    product = Product(130, 35, dtype, gated=True)
    run = gpu(device)(few(KINDS[device], product))
    rng = np.random.default_rng(5)
    (gate, opened), (up, upward) = (weight(rng, (product.n, product.k), dtype) for _ in range(2))
    packed = np.stack([pack_rows(w, dtype) for w in (gate, up)], 1).reshape(2 * product.n, -1)
    x = 2 * normal(rng, 9, product.k)
    want = OPS["gated_proj"].meaning(x, opened, upward, None)
    for rows in (9, 4, 1):
        y = np.full((rows, product.n), np.nan, np.float32)
        run(x[:rows], packed, y)
        assert error(y, want[:rows]) <= 3 * TOLERANCE


@pytest.mark.parametrize("device", DEVICES)
def test_a_shard_of_the_outputs(gpu: Any, device: str) -> None:
    first = Product(70, 11, "bf16", bias=True, residual=True, y_width=20)
    second = replace(first, n=9, y_begin=11)
    rng = np.random.default_rng(6)
    stored, w = weight(rng, (20, 70), "bf16")
    x, bias, residual, y = normal(rng, 3, 70), normal(rng, 20), normal(rng, 3, 20), np.full((3, 20), np.nan, np.float32)
    for run, part in zip(
        gpu(device).all(few(KINDS[device], first), few(KINDS[device], second)), (slice(11), slice(11, 20)), strict=True
    ):
        run(x, pack_rows(stored[part], "bf16"), bias, residual, y)
    assert error(y, OPS["proj"].meaning(x, w, None, bias, residual)) <= TOLERANCE


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_heads(gpu: Any, dtype: str, device: str) -> None:
    heads, k, n = 3, 40, 21
    kernel = heads_product(
        KINDS[device],
        heads,
        k,
        n,
        dtype,
        x_shape=(heads * 50,),
        x_offset=4,
        x_stride=50,
        y_shape=(heads, 32),
        y_offset=2,
        y_stride=32,
    )
    run = gpu(device)(kernel)
    rng = np.random.default_rng(7)
    stored, w = weight(rng, (heads, n, k), dtype)
    x = normal(rng, 10, heads * 50)
    want = np.stack([x[:, 50 * h + 4 : 50 * h + 44] @ w[h].T for h in range(heads)], 1)
    for rows in (1, 3, 10):
        y = np.full((rows, heads, 32), 7, np.float32)
        run(x[:rows], pack_rows(stored, dtype), y)
        assert error(y[..., 2 : n + 2], want[:rows]) <= TOLERANCE
        assert (y[..., :2] == 7).all() and (y[..., n + 2 :] == 7).all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", ["q8", "q4"])
def test_rows_longer_than_shared_memory(gpu: Any, dtype: str, device: str) -> None:
    product = Product(12288 + 1500, 5, dtype)
    run = gpu(device)(few(KINDS[device], product))
    rng = np.random.default_rng(8)
    stored, w = weight(rng, (5, product.k), dtype)
    x = normal(rng, 9, product.k)
    want = x.astype(np.float32) @ w.T
    for rows in (1, 9):
        y = np.full((rows, 5), np.nan, np.float32)
        run(x[:rows], pack_rows(stored, dtype), y)
        assert error(y, want[:rows]) <= TOLERANCE


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", ["f16", FP8])
def test_every_number_is_widened_exactly(gpu: Any, dtype: str, device: str) -> None:
    """Each code alone in a row, subnormal ones too: times 1 it is itself."""
    if dtype == FP8:
        codes = np.array([c for c in range(256) if c & 127 < 127], np.uint8)
        stored = np.zeros((254, 1), quantize_fp8(np.zeros((1, 1), np.float32)).dtype)
        stored["codes"][:, 0, :] = np.where(np.arange(128) == np.arange(254)[:, None] % 128, codes[:, None], 0)
        stored["scale"] = 1
        values = values_fp8(stored, 128)
    else:
        bits = np.random.default_rng(3).integers(0, 0x7C00, (254, 128)).astype(np.uint16) | 0x8000
        bits[:, 1:] *= np.arange(1, 128) == np.arange(254)[:, None] % 127
        stored, values = bits.view(np.float16), bits.view(np.float16).astype(np.float32)
        values[:, 0] = 0
        stored = values.astype(np.float16)
    y = np.full((1, 254), np.nan, np.float32)
    gpu(device)(few(KINDS[device], Product(128, 254, dtype)))(
        np.ones((1, 128), np.float32), pack_rows(stored, dtype), y
    )
    assert np.array_equal(y[0], values.sum(-1))
