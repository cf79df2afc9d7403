"""Ragged batches on scattered pages, and attention in plain float64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from deepzig.artifacts.cache_rows import decode, encode
from deepzig.ir.quantize import quantize_rows
from deepzig.targets.cpu.features import Vectors

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Sizes:
    """Static sizes of an attention."""

    heads: int
    nope: int
    rope: int
    kv: int
    v: int
    page: int

    @property
    def cw(self) -> int:
        return -(-(self.kv + self.rope) // 16) * 16

    @property
    def cl(self) -> int:
        return -(-self.kv // 16) * 16


AVX2, AVX512, NEON = Vectors(16, 8), Vectors(32, 16), Vectors(32, 4)
SIZES = [
    Sizes(4, 16, 8, 32, 16, 16),
    Sizes(5, 7, 2, 19, 11, 3),
    Sizes(9, 24, 64, 72, 37, 20),
    Sizes(1, 5, 6, 48, 8, 64),
    Sizes(3, 9, 4, 5, 3, 1),
]
SCALE = 0.37


def to_bits(x: Array, dtype: str) -> Array:
    """f32 rounded to nearest even, as stored."""
    if dtype == "q8":
        return encode(x.astype(np.float32))
    if dtype == "f32":
        return x.astype(np.float32)
    if dtype == "f16":
        return x.astype(np.float16).view(np.uint16)
    bits = x.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def to_f32(bits: Array, dtype: str) -> Array:
    """Stored values, widened exactly."""
    if dtype == "f32":
        return bits
    return (
        bits.view(np.float16).astype(np.float32) if dtype == "f16" else (bits.astype(np.uint32) << 16).view(np.float32)
    )


def rounded(x: Array, dtype: str) -> Array:
    """What a cache makes of rows, in float64."""
    values = quantize_rows(x.astype(np.float32)) if dtype == "q8" else to_f32(to_bits(x, dtype), dtype)
    return values.astype(np.float64)


def read_rows(stored: Array, dtype: str, width: int) -> Array:
    """Rows of a cache, as f32."""
    return decode(stored, width) if dtype == "q8" else to_f32(stored, dtype)


def error(got: Array, want: Array) -> float:
    """Relative error in the Euclidean norm."""
    assert np.isfinite(got).all()
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


@dataclass
class Batch:
    """Rows of several sequences: `ranges` are (first, last + 1) positions, in order of sequence."""

    seq: Array
    pos: Array
    table: Array
    pages: int

    @classmethod
    def of(cls, ranges: list[tuple[int, int]], page: int, rng: np.random.Generator) -> Batch:
        """Pages are dealt at random; unused entries of the table are out of range, since nothing may read them."""
        needed = [-(-end // page) for _, end in ranges]
        pages = sum(needed) + 3
        dealt = iter(rng.permutation(pages))
        table = np.full((len(ranges), max(needed) + 2), -(2**30), np.int32)
        for row, count in zip(table, needed, strict=True):
            row[:count] = [next(dealt) for _ in range(count)]
        seq = np.concatenate([np.full(end - begin, s, np.int32) for s, (begin, end) in enumerate(ranges)])
        pos = np.concatenate([np.arange(begin, end, dtype=np.int32) for begin, end in ranges])
        return cls(seq, pos, table, pages)

    def cache(self, latents: list[Array], width: int, page: int, dtype: str) -> Array:
        """Pages that hold the cache rows of each sequence, among garbage."""
        garbage = 777 if dtype == "q8" else np.nan
        cache = to_bits(np.full((self.pages, page, width), garbage, np.float32), dtype)
        for row, rows in zip(self.table, latents, strict=True):
            for t, value in enumerate(to_bits(rows, dtype)):
                cache[row[t // page], t % page] = value
        return cache

    def take(self, rows: slice) -> tuple[Array, Array]:
        return self.seq[rows], self.pos[rows]


def rotate(x: Array, angles: Array, interleaved: bool) -> Array:
    """RoPE as transformers writes it: real parts, then imaginary parts."""
    half = x.shape[-1] // 2
    real, imaginary = (x[..., 0::2], x[..., 1::2]) if interleaved else (x[..., :half], x[..., half:])
    cos, sin = angles[..., :half], angles[..., half:]
    return np.concatenate([real * cos - imaginary * sin, imaginary * cos + real * sin], -1)


def softmax_rows(query: Array, keys: Array, values: Array) -> Array:
    """Attention of one row over positions: query [h, d], keys [t, h or 1, d], values [t, h or 1, w]."""
    scores = SCALE * np.einsum("hd,thd->ht", query, np.broadcast_to(keys, (len(keys), *query.shape)))
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("ht,thw->hw", weights, np.broadcast_to(values, (len(values), len(query), values.shape[-1])))


def latents_of(batch: Batch, s: Sizes, rng: np.random.Generator) -> list[Array]:
    """Random cache rows for every sequence, zero beyond the key."""
    ends = [int(batch.pos[batch.seq == q].max()) + 1 for q in range(len(batch.table))]
    rows = [rng.normal(size=(end, s.cw)).astype(np.float32) for end in ends]
    for r in rows:
        r[:, s.kv + s.rope :] = 0
    return rows


RAGGED = [(0, 3), (61, 62), (130, 137), (15, 17), (0, 1)]
