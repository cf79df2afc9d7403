"""How weights are stored for a GPU: layouts of rows of words, and shards of those larger than a kernel may read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from deepzig.ir import TensorType
from deepzig.targets.base import Layout

from .layout import pack_rows, packed_type

Array = npt.NDArray[Any]
Part = tuple[int, int] | None
"""Which of the first dimension are stored, from and to; None: all."""


@cache
def rows_layout(dtype: str, part: Part) -> Layout:
    """Rows of words."""
    return Layout(_name("rows", dtype, part), packed_type, lambda w: pack_rows(w, dtype), part)


@cache
def gate_up_layout(dtype: str, part: Part) -> Layout:
    """Rows of words of two weights, in turns."""

    def type_of(gate: TensorType, _: TensorType) -> TensorType:
        packed = packed_type(gate)
        *lead, n, words = (int(d) for d in packed.shape)
        return TensorType(packed.dtype, (*lead, 2 * n, words))

    def pack(gate: Array, up: Array) -> Array:
        rows = [pack_rows(w, dtype) for w in (gate, up)]
        *lead, n, words = rows[0].shape
        return np.stack(rows, -2).reshape(*lead, 2 * n, words)

    return Layout(_name("gate-up", dtype, part), type_of, pack, part)


def _name(kind: str, dtype: str, part: Part) -> str:
    return f"{kind}-{dtype}" if part is None else f"{kind}-{dtype}@{part[0]}:{part[1]}"


def parts(layout: Callable[..., Layout], binding_bytes: int, *weights: TensorType) -> Iterator[Part]:
    """The shards of a weight, each as large as can be; one that is None if the weight needs no shards.

    Args:
        layout: from an element type and a part to a layout.
        binding_bytes: the most of a kernel's buffer.
        weights: the sources of the layout.
    """
    whole, *rest = (int(d) for d in layout(weights[0].dtype, None).stored(*weights).shape)
    count = int(weights[0].shape[0])
    most = binding_bytes // (4 * int(np.prod(rest)) * whole // count)
    if most >= count:
        yield None
        return
    for begin in range(0, count, most):
        yield begin, min(begin + most, count)
