"""Products of many rows against their meaning."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from deepzig.ir import OPS
from deepzig.ir.fp8 import FP8, RECORD, SIDE, values_fp8
from deepzig.targets.gpu.device import CUDA, METAL, WEBGPU, Gpu
from deepzig.targets.gpu.layout import pack_rows
from deepzig.targets.gpu.operands import Encoding, prepare
from deepzig.targets.gpu.product import Product
from deepzig.targets.gpu.tiled import tiled, tiled_heads

from ..latents import to_bits, to_f32
from .weights import DTYPES, Array, Weight, error, normal

PLAIN = Gpu(kind="cuda", max_threads=256, shared_bytes=16 << 10)
"""A device with no matrix units, as little shared memory as WebGPU promises, and no copies in the background."""
GPUS = {"cuda": CUDA, "metal": METAL, "plain": PLAIN, "webgpu": WEBGPU}
TOLERANCE = 3e-6
"""f32 sums of exact products; norm-relative."""


def rounded(x: Array, gpu: Gpu, wdtype: str) -> Array:
    """Rows as the unit for a type of weights multiplies them; integers are rounded by the weight's meaning."""
    element = Encoding.of(gpu, 64, wdtype).unit.element
    return to_f32(to_bits(x, element), element) if element in ("bf16", "f16") else x


class Tiled:
    """A product in two kernels."""

    def __init__(self, compile_: Any, gpu: Gpu, product: Product) -> None:
        self.product, self.encoding = product, Encoding.of(gpu, product.k, product.wdtype)
        first = prepare(
            self.encoding, x_shape=(product.x_width or product.k,), begin=product.begin, norm_eps=product.norm_eps
        )  # fmt: skip
        self.prepare, self.multiply = compile_.all(first, tiled(gpu, product))

    def __call__(self, x: Array, w: Array, norm: Array | None, *extras: Array) -> Array:
        kind = np.float32 if self.encoding.dtype == "f32" else np.uint32
        prepared = np.full((len(x), 1, self.encoding.pitch), 0xFFFFFFFF, np.uint32).view(kind)
        self.prepare(x, *([] if norm is None else [norm]), prepared)
        y = np.full((len(x), self.product.n), np.nan, np.float32)
        self.multiply(prepared, w, *extras, y)
        return y


def every(*fast: tuple[str, str]) -> Any:
    """All kinds of devices with all types of weights; pairs other than these are slow tests."""
    pairs = [(device, wdtype) for device in GPUS for wdtype in DTYPES]
    marked = [pytest.param(*pair, marks=[] if pair in fast else [pytest.mark.slow]) for pair in pairs]
    return pytest.mark.parametrize(("device", "wdtype"), marked)


@every(
    ("cuda", "f32"),
    ("cuda", "f16"),
    ("cuda", "q8"),
    ("cuda", FP8),
    ("metal", "bf16"),
    ("metal", "q4"),
    ("plain", "q4"),
    ("webgpu", "f16"),
    ("webgpu", "q8"),
)
def test_product(gpu: Any, device: str, wdtype: str) -> None:
    check_product(gpu, device, wdtype, (197, 83, 3, 2))


SIZES = [
    ("cuda", "bf16", (37, 1, 0, 0)),
    ("metal", "q4", (37, 1, 0, 0)),
    ("cuda", "q4", (256, 136, 8, 4)),
    ("cuda", "bf16", (70, 1050, 0, 0)),  # more columns have larger tiles
    ("cuda", "q8", (70, 1050, 0, 0)),
    ("cuda", FP8, (129, 1050, 0, 0)),
    ("metal", "f32", (70, 1050, 0, 0)),
    ("plain", "f16", (70, 1050, 0, 0)),
    ("plain", "f32", (37, 9, 0, 0)),
]


@pytest.mark.parametrize(("device", "wdtype", "sizes"), SIZES)
def test_product_of_other_sizes(gpu: Any, device: str, wdtype: str, sizes: tuple[int, int, int, int]) -> None:
    check_product(gpu, device, wdtype, sizes)


def check_product(gpu: Any, device: str, wdtype: str, sizes: tuple[int, int, int, int]) -> None:
    """Against its meaning, and the same bits for a row alone and among others."""
    k, n, begin, extra = sizes
    rng = np.random.default_rng(k)
    width = begin + k + extra
    product = Product(k, n, wdtype, x_width=width, begin=begin, bias=True, residual=True)
    run = Tiled(gpu(GPUS[device].kind), GPUS[device], product)
    w = Weight.of(normal(rng, n, k) / np.float32(np.sqrt(k)), wdtype)
    rows = 141
    x, bias, residual = normal(rng, rows, width), normal(rng, n), normal(rng, rows, n)
    x[:, :begin] = x[:, begin + k :] = np.nan  # what is beside is not read
    y = run(x, w.packed, None, bias, residual)
    want = OPS["linear"].meaning(rounded(x[:, begin : begin + k], GPUS[device], wdtype), w.value, bias) + residual
    assert error(y, want) <= TOLERANCE
    for part in (slice(0, 0), slice(0, 1), slice(5, 75)):
        assert np.array_equal(run(x[part], w.packed, None, bias, residual[part]), y[part])


@every(("cuda", "bf16"), ("cuda", "q8"), ("metal", FP8), ("metal", "f16"))
def test_norm_and_gate(gpu: Any, device: str, wdtype: str) -> None:
    """What a norm's last bits decide may be rounded either way."""
    rng = np.random.default_rng(5)
    k, n, eps, rows = 133, 35, 1e-3, 19
    run = Tiled(gpu(GPUS[device].kind), GPUS[device], Product(k, n, wdtype, norm_eps=eps, gated=True))
    gate, up = (Weight.of(normal(rng, n, k) / np.float32(np.sqrt(k)), wdtype) for _ in range(2))
    x, norm = normal(rng, rows, k), normal(rng, k)
    packed = np.stack([gate.packed, up.packed], 1).reshape(2 * n, -1)
    y = run(x, packed, norm)
    normed = rounded(OPS["rms_norm"].meaning(x, norm, eps=eps), GPUS[device], wdtype)
    assert error(y, OPS["gated_proj"].meaning(normed, gate.value, up.value, None)) <= 1e-4


@every(("cuda", "bf16"), ("cuda", FP8), ("metal", "bf16"))
def test_heads(gpu: Any, device: str, wdtype: str) -> None:
    """Columns beside the inputs aren't read, those beside the outputs aren't written."""
    rng = np.random.default_rng(7)
    heads, k, n, rows, x_stride, y_stride = 3, 20, 41, 70, 29, 48
    encoding = Encoding.of(GPUS[device], k, wdtype)
    first, second = gpu(GPUS[device].kind).all(
        prepare(encoding, x_shape=(heads * x_stride + 2,), begin=2, parts=heads, stride=x_stride),
        tiled_heads(GPUS[device], heads, k, n, wdtype, y_shape=(heads, y_stride), y_offset=1, y_stride=y_stride),
    )
    x, w = normal(rng, rows, heads * x_stride + 2), Weight.of(normal(rng, heads, n, k), wdtype)
    inputs = x[:, 2:].reshape(rows, heads, x_stride)[..., :k].copy()
    x[:, 2:].reshape(rows, heads, x_stride)[..., k:] = np.nan
    prepared = np.zeros((rows, heads, encoding.pitch), np.float32 if encoding.dtype == "f32" else np.uint32)
    y = np.full((rows, heads, y_stride), 0.25, np.float32)
    first(x, prepared)
    second(prepared, w.packed, y)
    inputs = rounded(inputs, GPUS[device], wdtype)
    want = np.stack([OPS["linear"].meaning(inputs[:, h], w.value[h]) for h in range(heads)], 1)
    assert error(y[..., 1 : 1 + n], want) <= TOLERANCE
    assert (y[..., :1] == 0.25).all() and (y[..., 1 + n :] == 0.25).all()


def test_every_code_of_8_bit_floats_is_widened_exactly(gpu: Any) -> None:
    """Subnormal numbers and both zeros, at every place of a step."""
    codes = np.array([c for c in range(256) if c & 0x7F != 0x7F], np.uint8)
    k, n = SIDE, len(codes)
    stored = np.zeros((n, 1), RECORD)
    stored["codes"] = codes[:, None, None].repeat(SIDE, 2)
    stored["scale"] = 0.5
    x = np.eye(SIDE, dtype=np.float32)[[0, 1, 2, 3, 4, 13, 15, 127]] * 3
    for device, of in GPUS.items():
        y = Tiled(gpu(GPUS[device].kind), of, Product(k, n, FP8))(x, pack_rows(stored, FP8), None)
        assert np.array_equal(y, x @ values_fp8(stored, k).T) and (np.abs(y).max(-1) > 0).all()
