"""Which products a CPU computes how: the table from the element type of a weight and what the CPU has for matrices."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from types import MappingProxyType

from deepzig.ir.quantize import QUANTIZED

from . import amx, amx_integers
from .features import Vectors
from .product import Method, fused
from .quant import coded


def method_of(wdtype: str, vectors: Vectors) -> Method:
    """How products with weights of an element type are computed."""
    make = METHODS.get((wdtype, vectors.matrices), _integers if wdtype in QUANTIZED else fused)
    return make(vectors)


def _integers(vectors: Vectors) -> Method:
    """Exact sums of products of bytes."""
    return replace(fused(vectors), encode=coded)


def _amx_bf16(vectors: Vectors) -> Method:
    """Tiles of bf16."""
    return Method(
        amx.TILE, amx.rows_by_tiles, amx.rounded, alone=False, panel=amx.PANEL, consecutive=True, threads=amx.threads
    )  # fmt: skip


def _amx_integers(vectors: Vectors) -> Method:
    """Tiles of bytes, and instructions for vectors for a single row: the sums are the same."""
    encode = partial(coded, spare=amx.ROWS - 1)
    return Method(amx_integers.TILE, amx_integers.rows_by_tiles, encode, consecutive=True, threads=amx.threads)


METHODS: Mapping[tuple[str, str], Callable[[Vectors], Method]] = MappingProxyType(
    {("bf16", "amx"): _amx_bf16, ("q8", "amx"): _amx_integers, ("q4", "amx"): _amx_integers}
)
"""Element type of a weight, `Vectors.matrices` -> the method, if it is not what every CPU has."""
