"""Quantised matrices: what they mean. Those of 8-bit floats have a file of their own, `fp8`.

A row of a matrix is cut into groups of 64 along the inner dimension. A group is one f32 scale and 64 integers, of 8 or
4 bits, symmetric around zero. What such a matrix multiplies is rounded too, to 8 bits in the same groups, so that the
products are exact integers, whose sum does not depend on its order: y = sum over groups of s_w s_x (q_w . q_x).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .fp8 import FP8

F32 = npt.NDArray[np.float32]
I8 = npt.NDArray[np.int8]

GROUP = 64
"""Elements that share a scale."""

QUANTIZED = {"q8": 8, "q4": 4}
"""Element types of matrices of integers -> bits of an element."""

FORMATS = (*QUANTIZED, FP8)
"""Element types of quantised matrices."""

SHRINKS = (0.97, 0.94, 0.91, 0.88, 0.85, 0.8)
"""More scales to try for 4 bits, as parts of the one that the largest element asks for: a smaller one cuts it off."""


def quantize(w: npt.NDArray[Any], dtype: str) -> tuple[I8, F32]:
    """A matrix [..., n, k] as integers [..., n, groups, 64], zero beyond k, and scales [..., n, groups].

    With 8 bits from -127 to 127. With 4 bits from -8 to 7, where the element farthest from zero becomes -8 or a scale
    that cuts it off errs less.
    """
    groups = in_groups(w)
    if QUANTIZED[dtype] == 8:
        codes, scales = _rounded(groups, np.abs(groups).max(-1) / np.float32(127), -127, 127)
        return codes.astype(np.int8), scales
    farthest = np.take_along_axis(groups, np.abs(groups).argmax(-1)[..., None], -1)[..., 0]
    codes, scales = _rounded(groups, farthest / np.float32(-8), -8, 7)
    best = _squared_error(groups, codes, scales)
    for shrink in SHRINKS:
        tried, scale = _rounded(groups, farthest * np.float32(shrink) / np.float32(-8), -8, 7)
        error = _squared_error(groups, tried, scale)
        better = error < best
        np.copyto(codes, tried, where=better[..., None])
        best, scales = np.where(better, error, best), np.where(better, scale, scales)
    return codes.astype(np.int8), scales


def quantize_rows(x: F32) -> F32:
    """Rows [..., k] rounded to 8 bits in groups; as f32."""
    groups = in_groups(x)
    largest = np.abs(groups).max(-1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        codes = np.rint(groups * np.where(largest > 0, np.float32(127) / largest, np.float32(0)))
    rounded: F32 = (codes * (largest / np.float32(127))).reshape(*x.shape[:-1], -1)[..., : x.shape[-1]]
    return rounded


def in_groups(x: npt.NDArray[Any]) -> F32:
    """[..., k] as [..., groups, 64], with zeros at the end."""
    fill = -x.shape[-1] % GROUP
    padded = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, fill)]) if fill else x
    return padded.reshape(*x.shape[:-1], -1, GROUP)


def _rounded(groups: F32, scales: F32, least: int, most: int) -> tuple[F32, F32]:
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = np.where(scales != 0, np.float32(1) / scales, np.float32(0))
    codes = groups * inverse[..., None]
    np.rint(codes, out=codes)
    return np.clip(codes, least, most, out=codes), scales.astype(np.float32)


def _squared_error(groups: F32, codes: F32, scales: F32) -> F32:
    """Of each group, without the sum of its squares, which no choice of codes changes."""
    with np.errstate(over="ignore", invalid="ignore"):
        products, squares = (np.einsum("...k,...k->...", codes, other) for other in (groups, codes))
        error: F32 = scales * (scales * squares - 2 * products)
    return error


@dataclass(frozen=True)
class QuantizedMatrix:
    """A quantised matrix [n, k], or a stack of them, in the arithmetic of ops: `x @ w.T` rounds x as well.

    Attributes:
        values: what its integers and scales stand for, [..., n, k].
    """

    values: F32
    __array_ufunc__ = None

    @classmethod
    def of(cls, w: npt.NDArray[Any], dtype: str) -> QuantizedMatrix:
        """Quantise a matrix of f32."""
        codes, scales = quantize(w, dtype)
        values = (codes * scales[..., None]).reshape(*w.shape[:-1], -1)[..., : w.shape[-1]]
        return cls(values)

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return self.values.shape

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: Any) -> QuantizedMatrix:
        """One matrix of a stack."""
        return QuantizedMatrix(self.values[index])

    @property
    def T(self) -> _Transposed:  # noqa: N802 - numpy's name
        """Its transpose, to multiply by."""
        return _Transposed(self.values)


@dataclass(frozen=True)
class _Transposed:
    values: F32
    __array_ufunc__ = None

    def __rmatmul__(self, x: F32) -> F32:
        product: F32 = quantize_rows(x) @ self.values.T
        return product
