"""Which products a CPU computes how: the table from the element type of a weight and what the CPU has for matrices."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

from deepzig.ir.fp8 import FP8
from deepzig.ir.quantize import QUANTIZED

from . import amx, amx_integers, bf16
from .features import Vectors
from .fp8 import APART, FLOATS, PAIRS, fp8_tile
from .product import Method, tile
from .quant import coded, coded_tile


def method_of(wdtype: str, vectors: Vectors) -> Method:
    """How products with weights of an element type are computed."""
    make = METHODS.get((wdtype, vectors.matrices)) or METHODS.get((wdtype, ""), _fused)
    return make(vectors)


def _fused(vectors: Vectors) -> Method:
    """Chains of fused multiply-adds: of one, a row alone would wait for their latency."""
    return Method.by_tiles(vectors.tile, tile, abreast=2)


def _fp8(vectors: Vectors) -> Method:
    """Chains of multiply-adds, or of products of pairs, in groups."""
    if vectors.pairs:
        return Method.by_tiles(vectors.tile, partial(fp8_tile, form=PAIRS), encode=partial(bf16.rounded, apart=APART))
    return Method.by_tiles(vectors.tile, partial(fp8_tile, form=FLOATS))


def _integers(vectors: Vectors) -> Method:
    """Exact sums of products of bytes."""
    return Method.by_tiles(vectors.square, partial(coded_tile, integers=vectors.integers), encode=coded)


def _bf16_pairs(vectors: Vectors) -> Method:
    """Chains of products of pairs."""
    return Method.by_tiles(vectors.square, bf16.pairs_tile, encode=bf16.rounded)


def _amx_bf16(vectors: Vectors) -> Method:
    """Tiles of bf16."""
    return Method(
        amx.TILE, amx.rows_by_tiles, None, amx.rounded, panel=amx.PANEL, consecutive=True, threads=amx.threads
    )


def _amx_integers(vectors: Vectors) -> Method:
    """Tiles of bytes, and instructions for vectors for a single row: the sums are the same."""
    return Method(
        amx_integers.TILE, amx_integers.rows_by_tiles, partial(coded_tile, integers=vectors.integers),
        partial(coded, spare=amx.ROWS - 1), consecutive=True, threads=amx.threads,
    )  # fmt: skip


METHODS: Mapping[tuple[str, str], Callable[[Vectors], Method]] = MappingProxyType(
    {
        **{(dtype, ""): _integers for dtype in QUANTIZED},
        **{(dtype, "amx"): _amx_integers for dtype in QUANTIZED},
        (FP8, ""): _fp8,
        ("bf16", "pairs"): _bf16_pairs,
        ("bf16", "amx"): _amx_bf16,
    }
)
"""Element type of a weight, `Vectors.matrices` -> the method: of a type for any CPU under "", else multiply-adds."""
