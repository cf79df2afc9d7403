"""Attention over the latent cache: queries move into latent space, keys and values are the cache itself."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from deepzig.artifacts.onnx_file import MASK
from deepzig.ir import Node

from .context import BATCH, SEQUENCE, TOTAL, Context
from .rope import rotated


def cache_write(c: Context, node: Node, out: str) -> str:
    """The past with the new rows behind it: the graph's output `present.N.latent`."""
    state, rows, *_ = node.inputs
    assert state is not None and rows is not None
    past, present, element = c.cache(state)
    e, name = c.emit, c.use(rows)
    if element != TensorProto.FLOAT:
        name = e.op("Cast", name, to=element)
    by_sequence = e.op("Reshape", name, c.shape(BATCH, -1, int(rows.shape[1])))
    return e.op("Concat", past, by_sequence, axis=1, out=present)


def mla_decode(c: Context, node: Node, out: str) -> str:
    """Absorbed attention (DeepSeek-V2 paper, section 2.1.2) for any number of rows.

    The heads of a sequence are rows of one product with its cache, so that the cache is read once for all of them.
    """
    q, angles, cache, w_uk, w_uv, *_ = node.inputs
    assert q is not None and angles is not None and cache is not None and w_uk is not None and w_uv is not None
    e = c.emit
    (heads, latent, nope), rope, value = map(int, w_uk.shape), int(angles.shape[1]), int(w_uv.shape[1])
    width = latent + rope

    by_head = e.op("Reshape", c.use(q), e.ints(-1, heads, nope + rope))
    q_nope, q_rope = e.split(by_head, (nope, rope), axis=2)
    q_rope = rotated(c, q_rope, angles, heads, bool(node.attrs["interleaved"]))
    by_head = e.op("Transpose", q_nope, perm=(1, 0, 2))
    q_nope = e.op("MatMul", by_head, e.op("Transpose", c.use(w_uk), perm=(0, 2, 1)))  # [H, n, latent]
    q_nope = e.op("Transpose", q_nope, perm=(1, 0, 2))
    query = e.op("Concat", q_nope, e.op("Reshape", q_rope, e.ints(-1, heads, rope)), axis=2)  # [n, H, latent + rope]
    query = e.op("Mul", query, e.number(float(str(node.attrs["scale"]))))
    query = e.op("Reshape", query, c.shape(BATCH, -1, width))  # [b, s * H, latent + rope]

    present = c.names[cache]
    if cache.type.dtype != "f32":
        present = c.widened(present)
    scores = e.op("MatMul", query, e.op("Transpose", present, perm=(0, 2, 1)))  # [b, s * H, t]
    scores = e.op("Reshape", scores, c.shape(BATCH, SEQUENCE, heads, -1))
    scores = e.op("Add", scores, c.once("mask", lambda: mask(c)))
    weights = e.op("Reshape", e.op("Softmax", scores, axis=-1), c.shape(BATCH, -1, TOTAL))
    # with the key columns, which are dropped after: cutting them off the cache would copy it
    sums = e.op("Reshape", e.op("MatMul", weights, present), e.ints(-1, heads, width))
    sums = e.op("Slice", sums, e.ints(0), e.ints(latent), e.ints(2))

    by_head = e.op("Transpose", sums, perm=(1, 0, 2))  # [H, n, latent]
    values = e.op("MatMul", by_head, e.op("Transpose", c.use(w_uv), perm=(0, 2, 1)))  # [H, n, v]
    return e.op("Reshape", e.op("Transpose", values, perm=(1, 0, 2)), e.ints(-1, heads * value), out=out)


def mask(c: Context) -> str:
    """0 where a row may look, else -inf: [b, s, 1, t].

    A row sees what is not padding up to its own place; itself always, so that rows of padding, which see nothing else,
    compute numbers.
    """
    e = c.emit
    outer, e.scope = e.scope, "mask"
    zero, one = (e.constant(np.array(v, np.int64)) for v in (0, 1))
    total, length = (e.op("Squeeze", c.dim(d)) for d in (TOTAL, SEQUENCE))
    places = e.op("Range", zero, total, one)  # [t]
    own = e.op("Unsqueeze", e.op("Range", e.op("Sub", total, length), total, one), e.ints(1))  # [s, 1]
    kept = e.op("Unsqueeze", e.op("Cast", MASK, to=TensorProto.BOOL), e.ints(1))  # [b, 1, t]
    seen = e.op("And", kept, e.op("Less", places, own))  # [b, s, t]
    seen = e.op("Or", seen, e.op("Equal", places, own))
    bias = e.op("Where", seen, e.number(0.0), e.number(float("-inf")))
    name = e.op("Unsqueeze", bias, e.ints(2), out="mask")
    e.scope = outer
    return name
