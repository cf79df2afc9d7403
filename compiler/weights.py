"""Weights from the checkpoint to the artifact, one piece at a time.

A piece is one slice of a rank-3 parameter (one expert, one head), or a whole parameter of lower rank: the most that is
in memory at once is a few pieces, whatever the size of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from deepzig.errors import DeepZigError
from deepzig.ir import Module, Node, TensorType, Value
from deepzig.ir.fp8 import FP8, elements, from_elements, quantize_fp8
from deepzig.ir.quantize import QUANTIZED
from deepzig.models.checkpoint import Checkpoint
from deepzig.targets.base import Layout

Array = npt.NDArray[np.generic]

BLOCK = 1 << 18
"""Elements that are converted at once; they stay in the cache."""


@dataclass(frozen=True)
class Packed:
    """A weight of the artifact: parameters in the target's layout."""

    name: str
    layout: Layout
    sources: tuple[Value, ...]

    @property
    def type(self) -> TensorType:
        """The stored type."""
        return self.layout.stored(*(v.type for v in self.sources))

    @property
    def part(self) -> Fraction:
        """How much of the parameters is stored."""
        rows = self.layout.part
        return Fraction(1) if rows is None else Fraction(rows[1] - rows[0], int(self.sources[0].shape[0]))


class WeightSource:
    """The data of a module's parameters."""

    def __init__(self, module: Module, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._constants: Mapping[str, Array] = module.constants
        self._nodes: dict[Value, Node] = {out: node for node in module.weights for out in node.outputs}

    def packed(self, weight: Packed) -> Iterator[Array]:
        """The stored bytes of a weight, as consecutive arrays."""
        part = weight.layout.part
        for slices in zip(*(self.pieces(v, part) for v in weight.sources), strict=True):
            yield np.ascontiguousarray(weight.layout.pack(*slices))

    def pieces(self, value: Value, rows: tuple[int, int] | None = None) -> Iterator[Array]:
        """The parameter in its own element type (bf16 as bits, fp8 as records), piece by piece.

        Args:
            value: the parameter.
            rows: which of its first dimension, from and to; None for all.
        """
        node = self._nodes.get(value)
        if len(value.shape) < 3:
            whole = self.whole(value)
            yield whole if rows is None else whole[slice(*rows)]
        elif rows is not None:
            yield from (self.piece(value, i) for i in range(*rows))
        elif node is None:
            yield from (self._read(value, i) for i in range(int(value.shape[0])))
        elif node.op.name == "concat" and node.attrs["axis"] == 0:
            for part in node.inputs:
                assert part is not None
                yield from self.pieces(part)
        else:
            yield from self.whole(value)

    def piece(self, value: Value, index: int) -> Array:
        """One slice of the parameter along its first dimension, in its own element type."""
        node = self._nodes.get(value)
        rows = value.type.dtype == FP8 and len(value.shape) < 3  # which have no blocks of their own
        if node is None and value.name not in self._constants and not rows:
            return self._read(value, index)
        if node is not None and node.op.name == "concat" and node.attrs["axis"] == 0:
            for part in node.inputs:
                assert part is not None
                if index < int(part.shape[0]):
                    return self.piece(part, index)
                index -= int(part.shape[0])
        return self.whole(value)[index]

    def whole(self, value: Value) -> Array:
        """The parameter in its own element type (bf16 as bits, fp8 as records)."""
        if value.name in self._constants:
            return self._constants[value.name]
        node = self._nodes.get(value)
        if node is None:
            return self._read(value)
        if value.type.dtype != FP8:
            result: Array = node.op.meaning(*(v and self.whole(v) for v in node.inputs), **node.attrs)
            return result
        # what is done to matrices at compile time moves elements; here each takes its scale along
        parts = zip(*(elements(self.whole(v), int(v.shape[-1])) for v in node.inputs if v), strict=True)
        codes, scales = (node.op.meaning(*part, **node.attrs) for part in parts)
        return from_elements(codes, scales)

    def _read(self, value: Value, index: int | None = None) -> Array:
        """A parameter of the checkpoint, or one slice of it, in its own element type."""
        name, dtype = value.name, value.type.dtype
        if dtype == FP8 and (stored := self._checkpoint.fp8(name, index)) is not None:
            return stored
        x = self._checkpoint.read(name) if index is None else self._checkpoint.piece(name, index)
        x = convert(x, self._checkpoint.dtype(name), "f32" if dtype == FP8 else dtype, name)
        return quantize_fp8(x) if dtype == FP8 else x


def convert(x: Array, stored: str, wanted: str, name: str) -> Array:
    """`x` in another float type, rounded to nearest even.

    Done block by block: at no time are there other copies of the whole.

    Args:
        x: float32, float16, or the bits of bf16 as uint16.
        stored: its type: f32, f16 or bf16.
        wanted: the type of the result; f16 comes as bits, too, and what will be integers as f32.
        name: the tensor's name, for the error.

    Raises:
        DeepZigError: a value is too large for f16.
    """
    if stored == wanted:
        return x
    result: npt.NDArray[Any] = np.empty(x.shape, np.uint16 if wanted in ("bf16", "f16") else np.float32)
    source, target = x.reshape(-1), result.reshape(-1)
    for at in range(0, len(source), BLOCK):
        target[at : at + BLOCK] = ROUND[wanted](WIDEN[stored](source[at : at + BLOCK]))
        if wanted == "f16" and (target[at : at + BLOCK] & 0x7FFF == 0x7C00).any():
            raise DeepZigError("a weight is too large for f16", name, "compile with --dtype bf16")
    return result


def as_f32(x: Array, dtype: str) -> Array:
    """The values of a parameter in its own element type; f16 may be given as bits, too."""
    return x if dtype in QUANTIZED else WIDEN[dtype](x.view(np.float16) if dtype == "f16" else x)


def _to_bf16(x: Array) -> Array:
    bits = x.view(np.uint32)
    return ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)


def _to_f16(x: Array) -> Array:
    with np.errstate(over="ignore"):
        return x.astype(np.float16).view(np.uint16)


WIDEN: Mapping[str, Callable[[Array], Array]] = {
    "f32": lambda x: x,
    "f16": lambda x: x.astype(np.float32),
    "bf16": lambda x: (x.astype(np.uint32) << 16).view(np.float32),
}
"""From a stored type to f32."""

ROUND: Mapping[str, Callable[[Array], Array]] = {
    "f32": lambda x: x,
    "f16": _to_f16,
    "bf16": _to_bf16,
    **dict.fromkeys(QUANTIZED, lambda x: x),  # when it is packed
}
"""From f32 to a stored type, half-precision floats as bits."""
