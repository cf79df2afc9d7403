"""Matrices of 8-bit floats: what they mean.

The format of DeepSeek's own checkpoints (DeepSeek-V3 report, arXiv:2412.19437, section 3.3): e4m3 codes
(Micikevicius et al., arXiv:2209.05433), and one f32 scale for each block of 128 x 128, the last ones partial. A value
is code * scale. What such a matrix multiplies is not rounded, except by targets that multiply bf16.

A row of a matrix is held as records of 128 codes and the scale of their block, so that rows can be put together and
taken apart wherever blocks end.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]
Records = npt.NDArray[Any]

FP8 = "fp8"
"""The element type."""

SIDE = 128
"""Rows, and columns, of a block."""

RECORD = np.dtype([("codes", np.uint8, (SIDE,)), ("scale", np.float32)])
"""A row of a block."""

MOST = 448.0
"""The largest e4m3 number."""


def _e4m3() -> F32:
    """The value of each e4m3fn code: bias 7, no infinities, 0x7F is NaN."""
    code = np.arange(256)
    exponent, mantissa = code >> 3 & 15, code & 7
    value = np.where(exponent == 0, mantissa * 2.0**-9, (8 + mantissa) * 2.0 ** (exponent - 10.0))
    value[code & 127 == 127] = np.nan
    return np.where(code < 128, value, -value).astype(np.float32)


E4M3 = _e4m3()
"""Code -> value."""


def records(codes: U8, scales: F32) -> Records:
    """Codes [..., k] and a scale for each 128 of them [..., groups] as records [..., groups], zero beyond k."""
    result = np.zeros(scales.shape, RECORD)
    whole, rest = divmod(codes.shape[-1], SIDE)
    result["scale"] = scales
    result["codes"][..., :whole, :] = codes[..., : whole * SIDE].reshape(*codes.shape[:-1], whole, SIDE)
    if rest:
        result["codes"][..., whole, :rest] = codes[..., whole * SIDE :]
    return result


def quantize_fp8(w: npt.NDArray[Any]) -> Records:
    """A matrix [..., n, k] in blocks, as records [..., n, groups].

    The scale takes the largest element to 448; codes are the nearest ones, ties to even.
    """
    n, k = w.shape[-2:]
    result = np.empty((*w.shape[:-1], -(-k // SIDE)), RECORD)
    for first in range(0, n, SIDE):  # a row of blocks at a time: matrices are large
        rows = w[..., first : first + SIDE, :]
        of_columns = np.abs(rows).max(-2, keepdims=True)
        greatest = np.maximum.reduceat(of_columns, np.arange(0, k, SIDE), -1)
        scales = (greatest / np.float32(MOST)).astype(np.float32)
        divisors = np.repeat(np.where(scales > 0, scales, np.float32(1)), SIDE, -1)[..., :k]
        by_row = np.broadcast_to(scales, (*rows.shape[:-1], scales.shape[-1]))
        scaled: Any = rows / divisors
        result[..., first : first + SIDE, :] = records(to_e4m3(scaled), by_row)
    return result


def to_e4m3(x: F32) -> U8:
    """The codes of numbers: the nearest, ties to even; beyond the range the largest."""
    size = np.minimum(np.abs(x), np.float32(MOST))
    bits = size.view(np.uint32)
    normal = ((bits + 0x7FFFF + (bits >> 20 & 1)) >> 20) - (120 << 3)
    # below 2^-6 codes are multiples of 2^-9, the unit in the last place of floats from 2^14
    subnormal = (size + np.float32(2**14)).view(np.uint32) - np.float32(2**14).view(np.uint32)
    magnitude: U8 = np.where(size < 2.0**-6, subnormal, normal).astype(np.uint8)
    return np.where(np.signbit(x), magnitude | np.uint8(0x80), magnitude)


def values_fp8(stored: Records, k: int) -> F32:
    """The numbers [..., k] that records [..., groups] stand for."""
    values = E4M3[stored["codes"]] * stored["scale"][..., None]
    return np.ascontiguousarray(values.reshape(*stored.shape[:-1], -1)[..., :k])


def elements(stored: Records, k: int) -> tuple[U8, F32]:
    """The codes [..., k] and the scale of each."""
    codes = stored["codes"].reshape(*stored.shape[:-1], -1)[..., :k]
    return codes, np.repeat(stored["scale"], SIDE, -1)[..., :k]


def from_elements(codes: U8, scales: F32) -> Records:
    """Records of codes [..., n, k] and their scales, to the bit unless one has several scales: then rounded anew."""
    firsts = scales[..., ::SIDE]
    if np.array_equal(np.repeat(firsts, SIDE, -1)[..., : scales.shape[-1]], scales):
        return records(codes, firsts)
    return quantize_fp8(E4M3[codes] * scales)


def largest(stored: Records) -> F32:
    """The magnitude of each record's largest number; NaN if one of its codes is."""
    with np.errstate(over="ignore", invalid="ignore"):
        return E4M3[(stored["codes"] & 0x7F).max(-1)] * np.abs(stored["scale"])


def round_fp8(w: npt.NDArray[Any]) -> F32:
    """A matrix [..., n, k] with its numbers rounded to those of its blocks."""
    return values_fp8(quantize_fp8(w), w.shape[-1])
