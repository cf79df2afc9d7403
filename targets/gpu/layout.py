"""How weights and caches lie in a GPU's memory: row by row, so that a subgroup reads a row as one stretch.

A weight w[..., N, K] is stored as [..., N, pitch] 32-bit words; K is filled up with zeros to whole groups.

    f32         f32     word k is an element; groups of 64
    bf16, f16   u32     halves of words, even elements in the low ones; groups of 64
    q8          u32     byte k % 4 of word k // 4 is a code; after the codes of a row the scales of its groups of 64
    q4          u32     a group of 64 is 8 words: byte k % 4 of word k // 4, for k < 32, has the code of element k in
                        its low half and that of k + 32 in its high half, 8 added; then the scales, as with q8
    fp8         u32     as q8, with groups of 128

Scales are the bits of f32. A row with scales is filled up to a multiple of 4 words, so that rows can be read 16 bytes
at a time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from deepzig.ir import TensorType
from deepzig.ir.fp8 import FP8, SIDE
from deepzig.ir.quantize import GROUP, QUANTIZED, quantize

Array = npt.NDArray[Any]

BITS = {"f32": 32, "bf16": 16, "f16": 16, "q8": 8, "q4": 4, FP8: 8}
"""Element type of a weight -> bits of an element."""

ITEM_BYTES = {"f32": 4, "bf16": 2, "f16": 2, "i8": 1}
"""Element type of a cache row -> bytes of an element."""


def group(dtype: str) -> int:
    """Elements along the inner dimension that lie together: those of a scale, where there are scales."""
    return SIDE if dtype == FP8 else GROUP


def groups(size: int, dtype: str) -> int:
    """How many groups hold `size` elements."""
    return -(-size // group(dtype))


def has_scales(dtype: str) -> bool:
    """Whether rows of this type end with scales."""
    return dtype in QUANTIZED or dtype == FP8


def row_words(size: int, dtype: str) -> int:
    """Words that hold the `size` elements of a row; where there are scales, the index of the first."""
    return groups(size, dtype) * group(dtype) * BITS[dtype] // 32


def pitch(size: int, dtype: str) -> int:
    """Words from one row to the next."""
    words = row_words(size, dtype)
    return -(-(words + groups(size, dtype)) // 4) * 4 if has_scales(dtype) else words


def stored(dtype: str) -> str:
    """The element type of the words."""
    return "f32" if dtype == "f32" else "u32"


def packed_type(weight: TensorType) -> TensorType:
    """The type that `pack_rows` stores a weight [..., N, K] in."""
    *lead, size = (int(d) for d in weight.shape)
    return TensorType(stored(weight.dtype), (*lead, pitch(size, weight.dtype)))


def pack_rows(weight: Array, dtype: str) -> Array:
    """A weight [..., N, K] as the module says.

    Args:
        weight: f32, the bits of two-byte floats, f32 that becomes integers here, or records of `deepzig.ir.fp8`.
        dtype: what it is or becomes.
    """
    if not has_scales(dtype):
        fill = -weight.shape[-1] % GROUP
        bits = weight if dtype == "f32" else weight.view(np.uint16)
        bits = np.ascontiguousarray(np.pad(bits, [(0, 0)] * (bits.ndim - 1) + [(0, fill)]) if fill else bits)
        return bits if dtype == "f32" else bits.view(np.uint32)
    codes, scales = (weight["codes"], weight["scale"]) if dtype == FP8 else quantize(weight, dtype)
    if dtype == "q4":
        nibbles = (codes + 8).view(np.uint8)
        codes = nibbles[..., : GROUP // 2] | nibbles[..., GROUP // 2 :] << 4
    lead, size = codes.shape[:-2], codes.shape[-2] * group(dtype)
    words = row_words(size, dtype)
    packed = np.zeros((*lead, pitch(size, dtype)), np.uint32)
    packed[..., :words] = np.ascontiguousarray(codes).reshape(*lead, -1).view(np.uint32)
    packed[..., words : words + scales.shape[-1]] = np.ascontiguousarray(scales).view(np.uint32)
    return packed


def cache_row(dtype: str, width: int) -> tuple[str, int]:
    """The element type and size of a cache row of `width` columns: a multiple of 16 elements, in q8 of 64 bytes.

    A row of q8 is the codes of all columns in groups of 64, i8, then the f32 scale of each group, then zeros.
    """
    if dtype != "q8":
        return dtype, -(-width // 16) * 16
    return "i8", -(-(-(-width // GROUP) * (GROUP + 4)) // 64) * 64


def word_row(dtype: str, width: int) -> tuple[str, int]:
    """The same row in words: their type, and how many."""
    stored, size = cache_row(dtype, width)
    return ("f32" if stored == "f32" else "u32"), size * ITEM_BYTES[stored] // 4
