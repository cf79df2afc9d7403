"""The router's choice, and the mixture of experts as one loop over the experts that were chosen."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from deepzig.artifacts.onnx_file import MICROSOFT
from deepzig.ir import Node, Value

from .context import Context
from .emitter import typed
from .products import expert_product
from .qmoe import qmoe, qmoe_takes


def topk(c: Context, node: Node, out: str) -> str:
    """Indices of the k greatest, greatest first; ties to the lower index, as ONNX has it."""
    names = [f"{out}/values", out]
    k = int(str(node.attrs["k"]))
    return c.emit.ops("TopK", [c.use(node.inputs[0]), c.emit.ints(k)], names, axis=-1)[1]


def gather(c: Context, node: Node, out: str) -> str:
    """x[i, ids[i, j]]."""
    return c.emit.op("GatherElements", *map(c.use, node.inputs), out=out, axis=1)


def normalize(c: Context, node: Node, out: str) -> str:
    """Each row divided by its sum (+ 1e-20)."""
    e, x = c.emit, c.use(node.inputs[0])
    total = e.op("ReduceSum", x, e.ints(1), keepdims=1)
    return e.op("Div", x, e.op("Add", total, e.number(1e-20)), out=out)


def mask_groups(c: Context, node: Node, out: str) -> str:
    """-inf outside the groups whose best scores sum highest."""
    (x,) = node.inputs
    assert x is not None
    e, experts = c.emit, int(x.shape[1])
    groups, keep, best = (int(str(node.attrs[k])) for k in ("groups", "keep", "best"))
    grouped = e.op("Reshape", c.use(x), e.ints(-1, groups, experts // groups))
    highest, _ = e.ops("TopK", [grouped, e.ints(best)], [f"{out}/best", f"{out}/best.ids"], axis=-1)
    score = e.op("ReduceSum", highest, e.ints(2), keepdims=0)  # [n, groups]
    _, kept = e.ops("TopK", [score, e.ints(keep)], [f"{out}/kept.scores", f"{out}/kept"], axis=-1)
    marks = e.op("OneHot", kept, e.constant(np.array(groups, np.int64)), e.floats(0.0, 1.0), axis=-1)
    inside = e.op("Cast", e.op("ReduceMax", marks, e.ints(1), keepdims=0), to=TensorProto.BOOL)  # [n, groups]
    masked = e.op("Where", e.op("Unsqueeze", inside, e.ints(2)), grouped, e.number(-np.inf))
    return e.op("Reshape", masked, e.ints(-1, experts), out=out)


def moe(c: Context, node: Node, out: str) -> str:
    """The chosen experts' SwiGLU, weighted and summed."""
    x, ids, weights, gate, up, down = node.inputs
    assert x is not None and ids is not None and gate is not None and up is not None and down is not None
    rows, chosen, share = c.use(x), c.use(ids), c.use(weights)
    if c.domain == MICROSOFT and qmoe_takes(gate, up, down):
        return qmoe(c, rows, chosen, share, (gate, up, down), int(ids.shape[1]), out)
    return _loop(c, rows, chosen, share, (gate, up, down), out)


def _loop(c: Context, rows: str, chosen: str, share: str, experts: tuple[Value, Value, Value], out: str) -> str:
    """One pass for each expert that some row chose, over just the rows that chose it."""
    e, (gate, up, down) = c.emit, experts
    (active,) = e.ops("Unique", [chosen], [f"{out}/active"], sorted=1)
    zeros = e.op("ConstantOfShape", e.op("Shape", rows))
    c.emit = b = e.body("expert")
    number, go_on, before, go_on_out, after = (f"{b.scope}/{n}" for n in ("i", "go", "sum", "go.out", "sum.out"))
    expert = b.op("Gather", active, number, axis=0)
    places = b.op("Transpose", b.op("NonZero", b.op("Equal", chosen, expert)), perm=(1, 0))  # [m, 2]: row and slot
    row = b.op("Slice", places, b.ints(0), b.ints(1), b.ints(1))  # [m, 1]
    picked = b.op("GatherND", rows, row)  # [m, h]
    hidden = expert_product(c, picked, gate, expert)
    hidden = b.op("Mul", hidden, b.op("Sigmoid", hidden))
    hidden = b.op("Mul", hidden, expert_product(c, picked, up, expert))
    result = expert_product(c, hidden, down, expert)
    share = b.op("Unsqueeze", b.op("GatherND", share, places), b.ints(1))
    b.op("ScatterND", before, row, b.op("Mul", result, share), reduction="add", out=after)
    b.op("Identity", go_on, out=go_on_out)
    c.emit = e
    shape = ("rows", int(down.shape[1]))
    inputs = [(number, TensorProto.INT64, []), (go_on, TensorProto.BOOL, []), (before, TensorProto.FLOAT, shape)]
    outputs = [(go_on_out, TensorProto.BOOL, []), (after, TensorProto.FLOAT, shape)]
    body = b.graph(b.scope, [typed(*v) for v in inputs], [typed(*v) for v in outputs])
    count = e.op("Squeeze", e.op("Shape", active))
    return e.op("Loop", count, e.constant(np.array(True)), zeros, body=body, out=out)
