"""Rotary position embedding."""

from __future__ import annotations

import math
from functools import partial

from onnx import TensorProto

from deepzig.ir import Node, Value

from .context import Context


def rope_angles(c: Context, node: Node, out: str) -> str:
    """cos and sin of every row; angles are computed in f32, as when models are trained."""
    e, (positions, inv_freq) = c.emit, map(c.use, node.inputs)
    column = e.op("Unsqueeze", e.op("Cast", positions, to=TensorProto.FLOAT), e.ints(1))
    angle = e.op("Mul", column, inv_freq)
    both = e.op("Concat", e.op("Cos", angle), e.op("Sin", angle), axis=-1)
    return e.op("Mul", both, e.number(float(str(node.attrs["scale"]))), out=out)


def rope(c: Context, node: Node, out: str) -> str:
    """The op `rope`: x [n, ..., d]."""
    x, angles = node.inputs
    assert x is not None and angles is not None
    turned = rotated(c, c.use(x), angles, math.prod(map(int, x.shape[1:-1])), bool(node.attrs["interleaved"]))
    return c.emit.op("Reshape", turned, c.emit.ints(-1, *map(int, x.shape[1:])), out=out)


def rotated(c: Context, x: str, angles: Value, heads: int, interleaved: bool) -> str:
    """Heads turned by the angles of their row: [n, heads, 1, d].

    RotaryEmbedding leaves pairs where they are. The IR puts all real parts before all imaginary ones, which is what the
    op does with halves: so interleaved pairs are made halves first.

    Args:
        c: the export.
        x: [n, heads, d], or the same elements in another shape.
        angles: cos and sin, [n, d].
        heads: how many.
        interleaved: whether pairs are neighbours.
    """
    e, size = c.emit, int(angles.shape[1])
    if interleaved:
        pairs = e.op("Reshape", x, e.ints(-1, heads, size // 2, 2))
        x = e.op("Transpose", pairs, perm=(0, 1, 3, 2))
    x = e.op("Reshape", x, e.ints(-1, heads, 1, size))
    cos, sin = (c.once((angles, part), partial(_part, c, angles, part)) for part in (0, 1))
    return e.op("RotaryEmbedding", x, cos, sin)


def _part(c: Context, angles: Value, number: int) -> str:
    """Cosines (0) or sines (1) as RotaryEmbedding takes them where each row is a batch: [n, 1, d / 2]."""
    e, half = c.emit, int(angles.shape[1]) // 2
    columns = e.ints(number * half), e.ints((number + 1) * half), e.ints(1)
    name = f"{c.names[angles]}/{('cos', 'sin')[number]}"
    return e.op("Unsqueeze", e.op("Slice", c.use(angles), *columns), e.ints(1), out=name)
