"""Random weights as GPUs store them, with what they mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from deepzig.ir.fp8 import FP8, quantize_fp8, round_fp8
from deepzig.ir.quantize import QUANTIZED, QuantizedMatrix
from deepzig.targets.gpu.layout import pack_rows

from ..latents import to_bits, to_f32

Array = npt.NDArray[Any]
DTYPES = ("f32", "bf16", "f16", "q8", "q4", FP8)


@dataclass(frozen=True)
class Weight:
    """A weight [..., n, k].

    Attributes:
        packed: as stored.
        value: what ops multiply by.
    """

    packed: Array
    value: Any

    @classmethod
    def of(cls, w: Array, dtype: str) -> Weight:
        """The nearest to f32 numbers."""
        if dtype == FP8:
            return cls(pack_rows(quantize_fp8(w), dtype), round_fp8(w))
        if dtype in QUANTIZED:
            return cls(pack_rows(w, dtype), QuantizedMatrix.of(w, dtype))
        bits = to_bits(w, dtype)
        return cls(pack_rows(bits, dtype), to_f32(bits, dtype))


def normal(rng: np.random.Generator, *shape: int) -> Array:
    """Random f32 numbers."""
    return rng.standard_normal(shape, np.float32)


def error(actual: Array, expected: Array) -> float:
    """Norm-relative."""
    return float(np.linalg.norm(actual.astype(np.float64) - expected) / np.linalg.norm(expected))
