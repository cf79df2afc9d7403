"""Ops that only passes make. The meaning of each is written with the ops it replaces."""

from __future__ import annotations

import numpy as np

from .op import op
from .ops import (
    F32,
    I32,
    add,
    attend,
    bias_add,
    cache_read,
    cache_write,
    combine,
    expand,
    expert_linear,
    gather,
    linear,
    mask_groups,
    mul,
    normalize,
    rms_norm,
    rope,
    scale,
    sigmoid,
    silu,
    softmax,
    topk,
)
from .quantize import QuantizedMatrix

Heads = F32 | QuantizedMatrix
"""A stack of matrices, one for each head."""


@op("x: f32[n, w], w: float[m, k], norm?: f32[k], bias?: f32[m], residual?: f32[n, m] -> f32[n, m]")
def proj(
    x: F32, w: F32, norm: F32 | None, bias: F32 | None, residual: F32 | None, *, begin: int = 0, eps: float = 0.0
) -> F32:
    """linear of columns begin:begin+k of x, which may be normed first and added to a residual after."""
    x = x[:, begin : begin + w.shape[1]]
    if norm is not None:
        x = rms_norm.meaning(x, norm, eps=eps)
    y = linear.meaning(x, w, bias)
    return y if residual is None else add.meaning(residual, y)


@op("x: f32[n, k], gate: float[i, k], up: float[i, k], norm?: f32[k] -> f32[n, i]")
def gated_proj(x: F32, gate: F32, up: F32, norm: F32 | None, *, eps: float = 0.0) -> F32:
    """SwiGLU (Shazeer, 2020): silu(x gate^T) * (x up^T), x normed first where a norm is given."""
    if norm is not None:
        x = rms_norm.meaning(x, norm, eps=eps)
    return mul.meaning(silu.meaning(linear.meaning(x, gate)), linear.meaning(x, up))


@op("x: f32[n, w], norm: f32[kv], angles: f32[n, d], cache: float[pages, page, c], seq: i32[n], pos: i32[n], "
    "table: i32[b, p] -> any", shape=lambda types, attrs: tuple(t for t in types[3:4] if t))  # fmt: skip
def latent_write(
    x: F32, norm: F32, angles: F32, cache: F32, seq: I32, pos: I32, table: I32, *, begin: int, eps: float,
    interleaved: bool,
) -> F32:  # fmt: skip
    """Norm of the latent columns and RoPE of the key columns that follow, stored in the cache."""
    kv, d = len(norm), angles.shape[1]
    latent = rms_norm.meaning(x[:, begin : begin + kv], norm, eps=eps)
    key = rope.meaning(x[:, begin + kv : begin + kv + d], angles, interleaved=interleaved)
    return cache_write.meaning(cache, np.concatenate([latent, key], -1), seq, pos, table)


def _naive_mla(
    q: F32, angles: F32, cache: F32, w_uk: F32, w_uv: F32, seq: I32, pos: I32, table: I32, scale: float,
    interleaved: bool,
) -> F32:  # fmt: skip
    """Keys and values of every position and head, from its cache row."""
    heads, kv, nope = w_uk.shape
    q = q.reshape(len(q), heads, -1)
    rotated = rope.meaning(q[..., nope:], angles, interleaved=interleaved)
    past = cache_read.meaning(cache, table)
    latent, key = past[..., :kv], past[..., kv:]
    k_nope = np.einsum("btc,hcd->bthd", latent, w_uk, optimize=True)
    v = np.einsum("btc,hdc->bthd", latent, w_uv, optimize=True)
    k = np.concatenate([k_nope, expand.meaning(key, axis=2, size=heads)], -1)
    out = attend.meaning(np.concatenate([q[..., :nope], rotated], -1), k, v, seq, pos, scale=scale)
    return out.reshape(len(q), -1)


def _absorbed_mla(
    q: F32, angles: F32, cache: F32, w_uk: Heads, w_uv: Heads, seq: I32, pos: I32, table: I32, scale: float,
    interleaved: bool,
) -> F32:  # fmt: skip
    """A head's query goes through w_uk and meets cache rows; the mean of their latents goes through w_uv."""
    heads, kv, nope = w_uk.shape
    q = q.reshape(len(q), heads, -1)
    absorbed = np.stack([q[:, h, :nope] @ w_uk[h].T for h in range(heads)], 1)
    query = np.concatenate([absorbed, rope.meaning(q[..., nope:], angles, interleaved=interleaved)], -1)
    past = cache_read.meaning(cache, table)[:, :, None]
    rows = np.broadcast_to(past, (*past.shape[:2], heads, past.shape[-1]))
    latent = attend.meaning(query, rows, rows[..., :kv], seq, pos, scale=scale)
    return np.concatenate([latent[:, h] @ w_uv[h].T for h in range(heads)], -1)


_MLA = (
    "q: f32[n, w], angles: f32[n, d], cache: float[pages, page, c], w_uk: float[h, kv, nope], w_uv: float[h, v, kv], "
    "seq: i32[n], pos: i32[n], table: i32[b, p] -> f32[n, h*v]"
)


@op(_MLA)
def mla_decode(
    q: F32, angles: F32, cache: F32, w_uk: Heads, w_uv: Heads, seq: I32, pos: I32, table: I32, *, scale: float,
    interleaved: bool,
) -> F32:  # fmt: skip
    """Latent attention, absorbed when lowered: queries move into latent space, keys and values are the cache rows.

    For few rows a sequence (DeepSeek-V2 paper, section 2.1.2). It means the naive, un-absorbed form. Matrices of
    integers round what they multiply, and there it means the absorbed one: queries are rounded, and attended latents.
    """
    if isinstance(w_uk, QuantizedMatrix) or isinstance(w_uv, QuantizedMatrix):
        return _absorbed_mla(q, angles, cache, w_uk, w_uv, seq, pos, table, scale, interleaved)
    return _naive_mla(q, angles, cache, w_uk, w_uv, seq, pos, table, scale, interleaved)


@op(_MLA)
def mla_prefill(
    q: F32, angles: F32, cache: F32, w_uk: Heads, w_uv: Heads, seq: I32, pos: I32, table: I32, *, scale: float,
    interleaved: bool,
) -> F32:  # fmt: skip
    """Latent attention, un-absorbed when lowered: keys and values of a block of positions are expanded once for all.

    Matrices of integers stand for their values here: the cache rows that they expand are not rounded.
    """
    uk, uv = (w.values if isinstance(w, QuantizedMatrix) else w for w in (w_uk, w_uv))
    return _naive_mla(q, angles, cache, uk, uv, seq, pos, table, scale, interleaved)


@op("x: f32[n, h], gate: f32[e, h], bias?: f32[e], forced?: i32[n, top_k] -> ids: i32[n, top_k], w: f32[n, top_k]")
def router(
    x: F32, gate: F32, bias: F32 | None, forced: I32 | None, *, scoring: str, top_k: int, groups: int, keep: int,
    best: int, norm_topk_prob: bool, scaling: float,
) -> tuple[I32, F32]:  # fmt: skip
    """Routing to the best experts of the best groups, scored by sigmoid or softmax.

    The bias decides the choice only: the weights are the plain scores of the chosen (DeepSeek-V3 report, section 2.1).
    """
    scores = {"sigmoid": sigmoid, "softmax": softmax}[scoring].meaning(linear.meaning(x, gate))
    choice = scores if bias is None else bias_add.meaning(scores, bias)
    if groups > 1:
        choice = mask_groups.meaning(choice, groups=groups, keep=keep, best=best)
    ids = topk.meaning(choice, k=top_k) if forced is None else forced
    weights = gather.meaning(scores, ids)
    if norm_topk_prob:
        weights = normalize.meaning(weights)
    return ids, scale.meaning(weights, by=scaling)


@op("x: f32[n, h], ids: i32[n, k], weights: f32[n, k], gate: float[e, i, h], up: float[e, i, h], down: float[e, h, i], "
    "residual?: f32[n, h] -> f32[n, h]")  # fmt: skip
def moe(x: F32, ids: I32, weights: F32, gate: F32, up: F32, down: F32, residual: F32 | None, *, shared: int = 0) -> F32:
    """The chosen experts' SwiGLU, weighted and summed; the last `shared` experts serve every row with weight 1."""
    experts = len(gate)
    always = np.broadcast_to(np.arange(experts - shared, experts, dtype=np.int32), (len(x), shared))
    ids = np.concatenate([ids, always], -1)
    weights = np.concatenate([weights, np.ones((len(x), shared), np.float32)], -1)
    slots = expand.meaning(x, axis=1, size=ids.shape[1])
    hidden = mul.meaning(silu.meaning(expert_linear.meaning(slots, gate, ids)), expert_linear.meaning(slots, up, ids))
    y = combine.meaning(expert_linear.meaning(hidden, down, ids), weights)
    return y if residual is None else add.meaning(residual, y)
