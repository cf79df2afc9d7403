"""Op of the IR -> ONNX nodes, as a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from deepzig.errors import DeepZigError
from deepzig.ir import Node

from .attention import cache_write, mla_decode
from .context import Context
from .moe import gather, mask_groups, moe, normalize, topk
from .products import product, rows_of
from .rope import rope, rope_angles

Lowering = Callable[[Context, Node, str], str]
"""Emits a node of the IR so that its output gets the given name; returns the name, which may be another."""


def lower(c: Context, node: Node) -> None:
    """Emit a node of the IR; its output keeps its name, and what is emitted tells of it.

    Raises:
        DeepZigError: the op has no form in ONNX.
    """
    if node.op.name not in LOWERINGS:
        raise DeepZigError(f"{node.op.name} can't be exported to ONNX", node.where, "compile an artifact with -o DIR")
    c.emit.scope = node.output.name
    layer = {} if node.layer is None else {"deepzig.layer": str(node.layer)}
    c.emit.origin = {"deepzig.op": node.op.name, "deepzig.where": node.where, **layer}
    c.names[node.output] = LOWERINGS[node.op.name](c, node, node.output.name)


def _plain(kind: str, **attrs: Any) -> Lowering:
    """An op of the same arity and meaning."""
    return lambda c, node, out: c.emit.op(kind, *map(c.use, node.inputs), out=out, **attrs)


def _embed(c: Context, node: Node, out: str) -> str:
    tokens, table = node.inputs
    assert table is not None
    return rows_of(c, table, c.use(tokens), out)


def _take_rows(c: Context, node: Node, out: str) -> str:
    """Logits are wanted of every row."""
    return c.use(node.inputs[0])


def _rms_norm(c: Context, node: Node, out: str) -> str:
    x, weight = map(c.use, node.inputs)
    return c.emit.op("RMSNormalization", x, weight, out=out, axis=-1, epsilon=node.attrs["eps"])


def _linear(c: Context, node: Node, out: str) -> str:
    x, w, *bias = node.inputs
    assert w is not None
    return product(c, c.use(x), w, c.use(bias[0] if bias else None), out)


def _scale(c: Context, node: Node, out: str) -> str:
    return c.emit.op("Mul", c.use(node.inputs[0]), c.emit.number(float(str(node.attrs["by"]))), out=out)


def _silu(c: Context, node: Node, out: str) -> str:
    x = c.use(node.inputs[0])
    return c.emit.op("Mul", x, c.emit.op("Sigmoid", x), out=out)


def _slice(c: Context, node: Node, out: str) -> str:
    bounds = (c.emit.ints(int(str(node.attrs[k]))) for k in ("begin", "end", "axis"))
    return c.emit.op("Slice", c.use(node.inputs[0]), *bounds, out=out)


def _concat(c: Context, node: Node, out: str) -> str:
    return c.emit.op("Concat", *map(c.use, node.inputs), out=out, axis=node.attrs["axis"])


def _reshape(c: Context, node: Node, out: str) -> str:
    sizes = (-1 if isinstance(d, str) else d for d in node.output.shape)
    return c.emit.op("Reshape", c.use(node.inputs[0]), c.emit.ints(*sizes), out=out)


LOWERINGS: Mapping[str, Lowering] = {
    "add": _plain("Add"),
    "bias_add": _plain("Add"),
    "cache_write": cache_write,
    "concat": _concat,
    "embed": _embed,
    "gather": gather,
    "linear": _linear,
    "mask_groups": mask_groups,
    "mla_decode": mla_decode,
    "moe": moe,
    "mul": _plain("Mul"),
    "normalize": normalize,
    "reshape": _reshape,
    "rms_norm": _rms_norm,
    "rope": rope,
    "rope_angles": rope_angles,
    "scale": _scale,
    "sigmoid": _plain("Sigmoid"),
    "silu": _silu,
    "slice": _slice,
    "softmax": _plain("Softmax", axis=-1),
    "take_rows": _take_rows,
    "topk": topk,
}
"""Op of the IR -> how it is emitted."""
