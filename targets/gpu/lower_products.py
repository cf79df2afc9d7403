"""How products with weights become launches on a GPU: linear layers, SwiGLU, mixtures of experts.

A weight that is too large for a kernel is in shards, of outputs or of experts. Each is a launch: the first makes the
result, the others write their part of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from deepzig.ir import Node, TensorType, Value
from deepzig.targets.base import Emitter, Layout, Operand, Table, Variant
from deepzig.targets.plain import RAW

from .device import GpuTarget
from .few import few
from .lower_tiled import many_rows, prepared
from .plain import PLAIN
from .product import Product
from .tiled import tiled
from .weights import Part, gate_up_layout, parts, rows_layout


def _value(node: Node, index: int) -> Value:
    value = node.inputs[index]
    assert value is not None
    return value


def _optional(node: Node, index: int) -> Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _vectors(e: Emitter, *values: Value | None) -> list[Operand]:
    """Optional f32 operands: parameters as they are, others as values."""
    return [e.weight(RAW, v) if v.kind == "param" else e.value(v) for v in values if v is not None]


def _eps(node: Node, norm: Value | None) -> float | None:
    return float(str(node.attrs["eps"])) if norm else None


def sharded(
    e: Emitter, gpu: GpuTarget, layout: Callable[..., Layout], weights: Sequence[Value],
    kernel: Callable[[Part], Any], before: Sequence[Operand], after: Sequence[Operand], output: TensorType,
) -> Operand:  # fmt: skip
    """Emit a launch for each shard of a weight.

    Args:
        e: where to.
        gpu: the target.
        layout: from an element type and a part to the layout of the weight.
        weights: its sources.
        kernel: from a shard to the kernel.
        before: operands of the kernel before the weight.
        after: operands between the weight and the result.
        output: the type of the result.
    """
    dtype = weights[0].type.dtype
    result: Operand = None
    for part in parts(layout, gpu.gpu.binding_bytes, *(w.type for w in weights)):
        args = [*before, e.weight(layout(dtype, part), *weights), *after]
        result = e.call(kernel(part), args, output) if result is None else e.update(kernel(part), [*args, result])
    return result


def _product(
    e: Emitter, gpu: GpuTarget, node: Node, product: Product, layout: Callable[..., Layout], weights: Sequence[Value],
    *extras: Value | None,
) -> Operand:  # fmt: skip
    x, (norm, *others) = _value(node, 0), extras
    rows, norms, after = e.value(x), _vectors(e, norm), _vectors(e, *others)
    make: Callable[[Product], Any] = partial(few, gpu.gpu)
    if many_rows(e, x.shape[0]):
        make = partial(tiled, gpu.gpu)
        rows = prepared(
            e, gpu.gpu, rows, x.shape[0], product.k, product.wdtype, x_shape=(int(x.shape[1]),), begin=product.begin,
            norm_eps=product.norm_eps, norm=norms,
        )  # fmt: skip
    else:
        after = [*norms, *after]

    def kernel(part: Part) -> Any:
        begin, end = part or (0, product.n)
        return make(replace(product, n=end - begin, y_width=product.n, y_begin=begin))

    return sharded(e, gpu, layout, weights, kernel, [rows], after, node.output.type)


def _proj(e: Emitter, node: Node, gpu: GpuTarget) -> Operand:
    x, w = _value(node, 0), _value(node, 1)
    norm, bias, residual = (
        (None, _optional(node, 2), None) if node.op.name == "linear" else [_optional(node, i) for i in (2, 3, 4)]
    )
    product = Product(
        int(w.shape[1]), int(w.shape[0]), w.type.dtype, int(x.shape[1]), int(str(node.attrs.get("begin", 0))),
        _eps(node, norm), bias is not None, residual is not None,
    )  # fmt: skip
    return _product(e, gpu, node, product, rows_layout, [w], norm, bias, residual)


def _linear(e: Emitter, node: Node, gpu: GpuTarget) -> Operand:
    rank = len(_value(node, 0).shape)
    return (_proj if rank == 2 else PLAIN["linear"][0].lower)(e, node, gpu)


def _gated_proj(e: Emitter, node: Node, gpu: GpuTarget) -> Operand:
    gate, up, norm = _value(node, 1), _value(node, 2), _optional(node, 3)
    n, k = (int(d) for d in gate.shape)
    product = Product(k, n, gate.type.dtype, norm_eps=_eps(node, norm), gated=True)
    return _product(e, gpu, node, product, gate_up_layout, [gate, up], norm)


PRODUCTS: Table = {
    "linear": (Variant(_linear),),
    "proj": (Variant(_proj),),
    "gated_proj": (Variant(_gated_proj),),
}
"""Ops that multiply by weights, but for those of experts."""
