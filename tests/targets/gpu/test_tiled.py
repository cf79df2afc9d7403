"""Products of many rows against their meaning."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from deepzig.ir import OPS
from deepzig.ir.fp8 import FP8
from deepzig.targets.gpu.device import CUDA, METAL, Gpu
from deepzig.targets.gpu.operands import prepare
from deepzig.targets.gpu.product import Product
from deepzig.targets.gpu.tiled import tiled
from deepzig.targets.gpu.tiles import Multiplier

from ..latents import to_bits, to_f32
from .weights import DTYPES, Array, Weight, error, normal

GPUS = {"cuda": CUDA, "metal": METAL}
TOLERANCE = 3e-6
"""f32 sums of exact products; norm-relative."""


def rounded(x: Array, gpu: Gpu, wdtype: str) -> Array:
    """Rows as the unit for a type of weights multiplies them; integers are rounded by the weight's meaning."""
    element = Multiplier.of(gpu, 64, wdtype).unit.element
    return to_f32(to_bits(x, element), element) if element in ("bf16", "f16") else x


class Tiled:
    """A product in two kernels."""

    def __init__(self, compile_: Any, gpu: Gpu, product: Product) -> None:
        self.product, self.encoding = product, Multiplier.of(gpu, product.k, product.wdtype).encoding
        first = prepare(
            self.encoding, x_width=product.x_width or product.k, begin=product.begin, norm_eps=product.norm_eps
        )  # fmt: skip
        self.prepare, self.multiply = compile_.all(first, tiled(gpu, product))

    def __call__(self, x: Array, w: Array, norm: Array | None, *extras: Array) -> Array:
        kind = np.float32 if self.encoding.dtype == "f32" else np.uint32
        prepared = np.full((len(x), 1, self.encoding.pitch), 0xFFFFFFFF, np.uint32).view(kind)
        self.prepare(x, *([] if norm is None else [norm]), prepared)
        y = np.full((len(x), self.product.n), np.nan, np.float32)
        self.multiply(prepared, w, *extras, y)
        return y


@pytest.mark.parametrize("wdtype", DTYPES)
@pytest.mark.parametrize("device", GPUS)
@pytest.mark.parametrize(("k", "n", "begin", "extra"), [(197, 83, 3, 2), (37, 1, 0, 0), (256, 136, 8, 4)])
def test_product(gpu: Any, device: str, wdtype: str, k: int, n: int, begin: int, extra: int) -> None:
    """And the same bits for a row alone and among others."""
    rng = np.random.default_rng(k)
    width = begin + k + extra
    product = Product(k, n, wdtype, x_width=width, begin=begin, bias=True, residual=True)
    run = Tiled(gpu(device), GPUS[device], product)
    w = Weight.of(normal(rng, n, k) / np.float32(np.sqrt(k)), wdtype)
    rows = 141
    x, bias, residual = normal(rng, rows, width), normal(rng, n), normal(rng, rows, n)
    x[:, :begin] = x[:, begin + k :] = np.nan  # what is beside is not read
    y = run(x, w.packed, None, bias, residual)
    want = OPS["linear"].meaning(rounded(x[:, begin : begin + k], GPUS[device], wdtype), w.value, bias) + residual
    assert error(y, want) <= TOLERANCE
    for part in (slice(0, 0), slice(0, 1), slice(5, 75)):
        assert np.array_equal(run(x[part], w.packed, None, bias, residual[part]), y[part])
