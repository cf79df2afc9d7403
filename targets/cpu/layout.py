"""How weights lie in memory for the CPU kernels: 16 output columns side by side, the inner dimension outside.

One vector of a packed weight holds what one input element means to 16 outputs, so a kernel multiplies and
adds without horizontal sums, and reads a block of columns as one long stream. Two-byte floats lie in pairs
along the inner dimension: a u32 word has the even element in its low half and the odd one in its high half.

    f32         w[..., N, K] -> f32[..., N16, K, 16]           packed[j, k, l] = w[16 j + l, k]
    bf16, f16   w[..., N, K] -> u32[..., N16, ceil(K/2), 16]  half k % 2 of packed[j, k // 2, l] = w[16 j + l, k]

    q8          w[..., N, K] -> u32[..., N16, ceil(K/64), 17, 16]   byte k % 4 of packed[j, g, k // 4, l] = code of
                                                                   w[16 j + l, 64 g + k]
    q4          w[..., N, K] -> u32[..., N16, ceil(K/64), 9, 16]    of such a byte the low half for k < 32, the high
                                                                   half for the k after; 8 is added to codes

    fp8         w[..., N, K] -> u32[..., N16, ceil(K/128), 33, 16]  byte k % 4 of packed[j, g, k // 4, l] = code of
                                                                   w[16 j + l, 128 g + k]

A group of 64 integers, or of 128 8-bit floats, ends with its scales: packed[j, g, -1, l] is the bits of that of column
16 j + l.
What lies beyond N or K is zero.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from deepzig.ir import TensorType
from deepzig.ir.fp8 import FP8, SIDE
from deepzig.ir.quantize import GROUP, QUANTIZED, quantize

LANES = 16
"""Floats in a cache line, and columns in a block."""

Array = npt.NDArray[Any]


def blocks(size: int) -> int:
    """How many blocks of `LANES` hold `size` columns."""
    return -(-size // LANES)


def padded(size: int) -> int:
    """`size` rounded up to whole blocks."""
    return blocks(size) * LANES


def grouped(size: int) -> int:
    """`size` rounded up to whole groups of integers."""
    return -(-size // GROUP) * GROUP


def inner(size: int, dtype: str) -> tuple[int, ...]:
    """The dimensions of vectors along the inner dimension that hold `size` elements."""
    if dtype in QUANTIZED:
        return -(-size // GROUP), GROUP * QUANTIZED[dtype] // 32 + 1
    if dtype == FP8:
        return -(-size // SIDE), SIDE // 4 + 1
    return (size if dtype == "f32" else -(-size // 2),)


def stored(dtype: str) -> str:
    """The element type of a packed weight."""
    return "f32" if dtype == "f32" else "u32"


def packed_type(weight: TensorType) -> TensorType:
    """The type that `pack_columns` stores a weight [..., N, K] in."""
    *lead, n, k = (int(d) for d in weight.shape)
    return TensorType(stored(weight.dtype), (*lead, blocks(n), *inner(k, weight.dtype), LANES))


def cache_row(dtype: str, width: int) -> tuple[str, int]:
    """The element type and size of a cache row of `width` columns: whole vectors, or in q8 whole cache lines.

    A row of q8 is the codes of all columns in groups of 64, i8, then the f32 scale of each group, then zeros.
    """
    if dtype != "q8":
        return dtype, padded(width)
    return "i8", -(-(-(-width // GROUP) * (GROUP + 4)) // 64) * 64


def pack_quantized(weight: Array, dtype: str) -> Array:
    """Quantise and pack [..., N, K] of f32; of fp8, pack records [..., N, groups]."""
    codes, scales = (weight["codes"], weight["scale"]) if dtype == FP8 else quantize(weight, dtype)
    *lead, n, groups, _ = codes.shape
    words = np.empty((*lead, n, groups, inner(codes.shape[-1], dtype)[1]), np.uint32)
    words[..., -1] = scales.view(np.uint32)
    if dtype == "q4":
        nibbles = (codes + 8).view(np.uint8)
        words[..., :-1] = (nibbles[..., : GROUP // 2] | nibbles[..., GROUP // 2 :] << 4).view(np.uint32)
    else:
        words[..., :-1] = codes.view(np.uint32)
    return pack_columns(words.reshape(*lead, n, -1)).reshape(*lead, blocks(n), groups, -1, LANES)


def pack_quantized_gate_up(gate: Array, up: Array, dtype: str) -> Array:
    """Quantise and pack two weights [..., I, K] into [..., I16, 2, groups, words, 16]."""
    return np.stack([pack_quantized(gate, dtype), pack_quantized(up, dtype)], gate.ndim - 1)


def pack_columns(weight: Array) -> Array:
    """Pack [..., N, K], f32 or the bits of two-byte floats, as the module says."""
    words = _words(weight)
    *lead, n, k = words.shape
    packed = np.empty((*lead, blocks(n), k, LANES), words.dtype)
    _transpose(words, packed)
    return packed


def pack_gate_up(gate: Array, up: Array) -> Array:
    """Pack two weights [..., I, K] into [..., I16, 2, Kp, 16]: blocks of gate columns alternate with up's."""
    words = _words(gate), _words(up)
    *lead, n, k = words[0].shape
    packed = np.empty((*lead, blocks(n), 2, k, LANES), words[0].dtype)
    for half in range(2):
        _transpose(words[half], packed[..., half, :, :])
    return packed


def _words(weight: Array) -> Array:
    """Two-byte floats [..., N, K] as pairs [..., N, ceil(K/2)] in u32; f32 as it is."""
    if weight.itemsize == 4:
        return weight
    bits = weight.view(np.uint16)
    if bits.shape[-1] % 2:
        bits = np.concatenate([bits, np.zeros((*bits.shape[:-1], 1), np.uint16)], -1)
    return np.ascontiguousarray(bits).view(np.uint32)


def _transpose(words: Array, packed: Array) -> None:
    """packed[..., j, k, l] = words[..., 16 j + l, k], zero where there is no such row."""
    *lead, n, k = words.shape
    whole, rest = divmod(n, LANES)
    columns = words[..., : whole * LANES, :].reshape(*lead, whole, LANES, k)
    packed[..., :whole, :, :] = columns.swapaxes(-1, -2)
    if rest:
        packed[..., whole, :, :rest] = words[..., whole * LANES :, :].swapaxes(-1, -2)
        packed[..., whole, :, rest:] = 0
