"""How ops that touch each row once, and the router, become launches on a GPU."""

from __future__ import annotations

from typing import Any

from deepzig.ir import Node, TensorType, Value
from deepzig.targets.base import Emitter, Operand, Table, Variant
from deepzig.targets.plain import RAW

from . import norm, router, sample
from .device import GpuTarget
from .few import few
from .lower_tiled import many_rows, prepared
from .product import Product
from .tiled import tiled
from .weights import parts, rows_layout


def _value(node: Node, index: int) -> Value:
    value = node.inputs[index]
    assert value is not None
    return value


def _optional(node: Node, index: int) -> Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _operands(e: Emitter, *values: Value | None) -> list[Operand]:
    """Parameters as they are, others as values."""
    return [e.weight(RAW, v) if v.kind == "param" else e.value(v) for v in values if v is not None]


def _embed(e: Emitter, node: Node, target: GpuTarget) -> Operand:
    """One launch for each shard of the table, of which each writes the rows whose tokens it has."""
    tokens, table = _value(node, 0), _value(node, 1)
    vocab, hidden = (int(d) for d in table.shape)
    dtype = table.type.dtype
    y: Operand = None
    for part in parts(rows_layout, target.gpu.binding_bytes, table.type):
        begin, end = part or (0, vocab)
        kernel = norm.embed(end - begin, hidden, dtype, begin if part else None)
        args = [e.value(tokens), e.weight(rows_layout(dtype, part), table)]
        y = e.update(kernel, [*args, y]) if begin else e.call(kernel, args, node.output.type)
    return y


def _take_rows(e: Emitter, node: Node, target: GpuTarget) -> Operand:
    x, rows = _value(node, 0), _value(node, 1)
    return e.call(norm.take_rows(int(x.shape[1])), [e.value(x), e.value(rows)], node.output.type)


def _rms_norm(e: Emitter, node: Node, target: GpuTarget) -> Operand:
    x, w = _value(node, 0), _value(node, 1)
    kernel = norm.rms_norm(tuple(int(d) for d in x.shape[1:]), float(str(node.attrs["eps"])))
    return e.call(kernel, _operands(e, x, w), node.output.type)


def _rope_angles(e: Emitter, node: Node, target: GpuTarget) -> Operand:
    pos, inv_freq = _value(node, 0), _value(node, 1)
    kernel = norm.rope_angles(2 * int(inv_freq.shape[0]), float(str(node.attrs["scale"])))
    return e.call(kernel, _operands(e, pos, inv_freq), node.output.type)


def _router(e: Emitter, node: Node, target: GpuTarget) -> Any:
    x, gate = _value(node, 0), _value(node, 1)
    bias, forced = _optional(node, 2), _optional(node, 3)
    experts, k = (int(d) for d in gate.shape)
    dtype = gate.type.dtype
    product, weight, rows = Product(k, experts, dtype), e.weight(rows_layout(dtype, None), gate), x.shape[0]
    logits = TensorType("f32", (rows, experts))
    if many_rows(e, rows) and dtype == "f32":  # which is not rounded: the choice must not depend on that
        taken = prepared(e, target.gpu, e.value(x), rows, k, dtype, x_shape=(k,))
        scores = e.call(tiled(target.gpu, product), [taken, weight], logits)
    else:
        scores = e.call(few(target.gpu, product), [e.value(x), weight], logits)
    numbers = {name: int(str(node.attrs[name])) for name in ("groups", "keep", "best")}
    kernel = router.route(
        experts, int(str(node.attrs["top_k"])), scoring=str(node.attrs["scoring"]), **numbers,
        norm_topk_prob=bool(node.attrs["norm_topk_prob"]), scaling=float(str(node.attrs["scaling"])),
        bias=bias is not None, forced=forced is not None,
    )  # fmt: skip
    return e.call(kernel, [scores, *_operands(e, bias, forced)], *(v.type for v in node.outputs))


def _sample(e: Emitter, node: Node, target: GpuTarget) -> Operand:
    args = [_value(node, i) for i in range(7)]
    return e.call(sample.sample(int(args[0].shape[1]), target.gpu), list(map(e.value, args)), node.output.type)


ROWS: Table = {
    "embed": (Variant(_embed),),
    "take_rows": (Variant(_take_rows),),
    "rope_angles": (Variant(_rope_angles),),
    "rms_norm": (Variant(_rms_norm),),
    "router": (Variant(_router),),
    "sample": (Variant(_sample),),
}
