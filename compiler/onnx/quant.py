"""Quantised matrices in ONNX: how codes and scales are stored, and the products that read them.

What a code means is the IR's (`deepzig.ir.quantize`): groups of 64 along the inner dimension, symmetric around zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from deepzig.artifacts.onnx_file import MICROSOFT
from deepzig.compiler.weights import WeightSource
from deepzig.ir import Value
from deepzig.ir.quantize import GROUP, QUANTIZED, quantize

from .context import Context
from .external import ExternalTensor

Array = npt.NDArray[Any]

ROWS = 1024
"""Rows of a matrix that are quantised at once."""

INT8_ROWS = 4
"""accuracy_level of MatMulNBits and QMoE: what is multiplied is rounded to 8 bits in the same groups, as in the IR."""


@dataclass
class Quantised:
    """A matrix [n, k], or a stack of them, as codes [n, groups, 64] and scales [n, groups].

    Codes have to be made first; the scales that come with them are kept until they are asked for.

    Attributes:
        sources: the parameter; of two, the rows in turn.
    """

    sources: tuple[Value, ...]
    _scales: list[Array] = field(default_factory=list)

    @property
    def bits(self) -> int:
        """Bits of a code."""
        return QUANTIZED[self.sources[0].type.dtype]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of its scales."""
        *stack, rows, inner = map(int, self.sources[0].shape)
        return (*stack, rows * len(self.sources), -(-inner // GROUP))

    def codes(self, weights: WeightSource) -> Iterator[Array]:
        """Integers of some rows at a time, i8 [rows, groups, 64]."""
        for matrices in zip(*(weights.pieces(v) for v in self.sources), strict=True):
            for at in range(0, len(matrices[0]), ROWS):
                rows = np.stack([m[at : at + ROWS] for m in matrices], 1)
                codes, scales = quantize(rows.reshape(-1, rows.shape[-1]), self.sources[0].type.dtype)
                self._scales.append(scales)
                yield codes

    def scales(self, weights: WeightSource) -> Iterator[Array]:
        """Scales of some rows at a time, f32 [rows, groups]."""
        made, self._scales = self._scales, []
        yield from made

    def store(
        self, c: Context, name: str, pack: Callable[[Array], Array], *flat: int, element: int = TensorProto.UINT8
    ) -> tuple[str, str]:
        """Declare codes, packed to bytes, and scales.

        Args:
            c: the export.
            name: what their names begin with.
            pack: makes bytes of some rows of codes.
            flat: the shape of the codes, if it is not that of the scales and the bytes of a group.
            element: the element type of the codes.

        Returns:
            The names of both.
        """
        shape = flat or (*self.shape, GROUP * self.bits // 8)
        pieces = lambda weights: map(pack, self.codes(weights))  # noqa: E731
        codes = ExternalTensor(f"{name}.codes", element, shape, pieces)
        return c.store(codes), c.store(ExternalTensor(f"{name}.scales", TensorProto.FLOAT, self.shape, self.scales))


def quantised_product(c: Context, x: str, w: Value, bias: str, out: str | None) -> str:
    """x [n, k] times the transpose of a quantised weight [m, k], plus a bias."""
    if c.domain == MICROSOFT:
        return _nbits_product(c, x, w, bias, out)
    matrix = c.once(("columns", w), lambda: _columns(c, w))
    if not bias:
        return c.emit.op("MatMul", x, matrix, out=out)
    return c.emit.op("Add", c.emit.op("MatMul", x, matrix), bias, out=out)


def _columns(c: Context, w: Value) -> str:
    """The transposed weight [k, m] as DequantizeLinear makes it; onnxruntime fuses that with MatMul.

    With Gemm, or where the weight is transposed after, it would dequantise the whole matrix for each token.
    """
    matrix = Quantised((w,))
    inner, rows = int(w.shape[1]), int(w.shape[0])
    element = TensorProto.INT4 if matrix.bits == 4 else TensorProto.INT8

    def codes(weights: WeightSource) -> Iterator[Array]:
        transposed = np.ascontiguousarray(np.concatenate(list(matrix.codes(weights))).reshape(rows, -1)[:, :inner].T)
        yield nibbles(transposed.reshape(-1)) if matrix.bits == 4 else transposed

    def scales(weights: WeightSource) -> Iterator[Array]:
        yield np.concatenate(list(matrix.scales(weights))).T

    stored = c.store(ExternalTensor(f"{w.name}.codes", element, (inner, rows), codes))
    scale = c.store(ExternalTensor(f"{w.name}.scales", TensorProto.FLOAT, matrix.shape[::-1], scales))
    return c.emit.op("DequantizeLinear", stored, scale, axis=0, block_size=GROUP, out=f"{w.name}/transposed")


def _nbits_product(c: Context, x: str, w: Value, bias: str, out: str | None) -> str:
    matrix = Quantised((w,))
    rows, inner = map(int, w.shape)
    stored, scales = matrix.store(c, w.name, partial(nbits, matrix.bits))
    return c.emit.op(
        "MatMulNBits", x, stored, scales, *(["", "", bias] if bias else []), out=out, domain=MICROSOFT,
        N=rows, K=inner, bits=matrix.bits, block_size=GROUP, accuracy_level=INT8_ROWS,
    )  # fmt: skip


def quantised_expert(c: Context, stack: Value, expert: str) -> str:
    """One matrix [m, k] of a quantised stack [e, m, k] as f32.

    With plain ops: in onnxruntime DequantizeLinear, where it is not fused, takes four times as long.
    """
    e, matrix = c.emit, Quantised((stack,))
    rows, inner = map(int, stack.shape[1:])
    if matrix.bits == 4:
        stored, scales = matrix.store(c, stack.name, halves)
        packed = e.op("Gather", stored, expert, axis=0)  # [m, groups, 32]
        low = e.op("BitwiseAnd", packed, e.constant(np.array(15, np.uint8)))
        high = e.op("BitShift", packed, e.constant(np.array(4, np.uint8)), direction="RIGHT")
        codes = e.op("Cast", e.op("Concat", low, high, axis=2), to=TensorProto.FLOAT)
        values = e.op("Sub", codes, e.number(8.0))
    else:
        stored, scales = matrix.store(c, stack.name, lambda codes: codes, element=TensorProto.INT8)
        values = e.op("Cast", e.op("Gather", stored, expert, axis=0), to=TensorProto.FLOAT)  # [m, groups, 64]
    scale = e.op("Unsqueeze", e.op("Gather", scales, expert, axis=0), e.ints(2))
    whole = e.op("Reshape", e.op("Mul", values, scale), e.ints(rows, -1))
    return e.op("Slice", whole, e.ints(0), e.ints(inner), e.ints(1)) if inner % GROUP else whole


def offset(codes: Array, bits: int = 8) -> Array:
    """Signed codes as unsigned ones, with half of their range for zero."""
    return (codes.astype(np.int16) + (1 << (bits - 1))).astype(np.uint8)


def nibbles(codes: Array) -> Array:
    """Codes of 4 bits, two neighbours a byte, the first one in the low half."""
    bits = codes.view(np.uint8) & 15
    if bits.shape[-1] % 2:
        bits = np.concatenate([bits, np.zeros_like(bits[..., :1])], -1)
    return bits[..., ::2] | bits[..., 1::2] << 4


def nbits(bits: int, codes: Array) -> Array:
    """Unsigned codes as MatMulNBits and QMoE read them."""
    return nibbles(offset(codes, 4)) if bits == 4 else offset(codes)


def halves(codes: Array) -> Array:
    """Unsigned codes of 4 bits; the first half of a group is in the low halves of its bytes."""
    bits = offset(codes, 4)
    half = bits.shape[-1] // 2
    return bits[..., :half] | bits[..., half:] << 4
