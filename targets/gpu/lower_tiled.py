"""How products of many rows become launches: rows are prepared once for all columns, then multiplied tile by tile."""

from __future__ import annotations

from collections.abc import Sequence

from deepzig.ir import Dim, TensorType
from deepzig.targets.base import Emitter, Operand

from .device import Gpu
from .operands import Encoding, prepare


def many_rows(e: Emitter, rows: Dim) -> bool:
    """Whether a product has the rows of prompts, for which matrix units pay; not those whose logits are wanted."""
    return e.graph == "prefill" and rows == "n"


def prepared(
    e: Emitter, gpu: Gpu, x: Operand, rows: Dim, k: int, wdtype: str, *, x_shape: tuple[int, ...], begin: int = 0,
    parts: int = 1, stride: int = 0, norm_eps: float | None = None, norm: Sequence[Operand] = (),
) -> Operand:  # fmt: skip
    """Emit the preparation of rows for a weight of some type; see `operands.prepare`."""
    encoding = Encoding.of(gpu, k, wdtype)
    kernel = prepare(encoding, x_shape=x_shape, begin=begin, parts=parts, stride=stride, norm_eps=norm_eps)
    return e.call(kernel, [x, *norm], TensorType(encoding.dtype, (rows, parts, encoding.pitch)))
