"""The ops a model definition is written in, each with its numpy meaning.

Shapes: n rows (tokens of all sequences, flat), b sequences, p pages a sequence, r rows whose output is wanted.
Row i belongs to sequence seq[i] at absolute position pos[i]; the token at position t of sequence s is kept in page
table[s, t // page] at slot t % page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from deepzig.sampling import sample_tokens

from .op import ShapeError, op
from .records import Attr, Dim, TensorType

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]


@op("tokens: i32[n], table: float[v, h] -> f32[n, h]")
def embed(tokens: I32, table: F32) -> F32:
    """Rows of the embedding table."""
    return table[tokens]


@op("x: f32[n, h], rows: i32[r] -> f32[r, h]")
def take_rows(x: F32, rows: I32) -> F32:
    """The rows whose output is wanted."""
    return x[rows]


@op("x: f32[..., k], w: f32[k] -> f32[..., k]")
def rms_norm(x: F32, w: F32, *, eps: float) -> F32:
    """x / sqrt(mean(x^2) + eps) * w over the last dimension (Zhang and Sennrich, 2019)."""
    scale = 1 / np.sqrt(np.mean(np.square(x, dtype=np.float64), axis=-1, keepdims=True) + eps)
    return (x * scale).astype(np.float32) * w


@op("x: f32[..., k], w: float[m, k], bias?: f32[m] -> f32[..., m]")
def linear(x: F32, w: F32, bias: F32 | None = None) -> F32:
    """x W^T (+ bias)."""
    y = x @ w.T
    return y if bias is None else y + bias


@op("a: f32[...], b: f32[...] -> f32[...]")
def add(a: F32, b: F32) -> F32:
    """a + b."""
    return a + b


@op("x: f32[..., e], b: f32[e] -> f32[..., e]")
def bias_add(x: F32, b: F32) -> F32:
    """x + b over the last dimension."""
    return x + b


@op("a: f32[...], b: f32[...] -> f32[...]")
def mul(a: F32, b: F32) -> F32:
    """a * b."""
    return a * b


@op("x: f32[...] -> f32[...]")
def scale(x: F32, *, by: float) -> F32:
    """x times a constant."""
    return x * np.float32(by)


@op("x: f32[...] -> f32[...]")
def sigmoid(x: F32) -> F32:
    """1 / (1 + e^-x)."""
    return (0.5 * (1 + np.tanh(0.5 * x.astype(np.float64)))).astype(np.float32)


@op("x: f32[..., k] -> f32[..., k]")
def softmax(x: F32) -> F32:
    """e^x / sum(e^x) over the last dimension."""
    weights = np.exp(x.astype(np.float64) - x.max(-1, keepdims=True))
    return (weights / weights.sum(-1, keepdims=True)).astype(np.float32)


@op("x: f32[...] -> f32[...]")
def silu(x: F32) -> F32:
    """x sigmoid(x)."""
    return x * sigmoid.meaning(x)


def _slice_shape(types: Sequence[TensorType | None], attrs: Mapping[str, Attr]) -> tuple[TensorType, ...]:
    (x,) = (t for t in types if t is not None)
    axis, begin, end = (int(str(attrs[k])) for k in ("axis", "begin", "end"))
    size = x.shape[axis]
    if not isinstance(size, int) or not 0 <= begin < end <= size:
        raise ShapeError(f"slice [{begin}:{end}] of dimension {axis} of {x}")
    return (TensorType(x.dtype, (*x.shape[:axis], end - begin, *x.shape[axis + 1 :])),)


@op("x: any -> any", shape=_slice_shape)
def slice_(x: F32, *, axis: int, begin: int, end: int) -> F32:
    """x[..., begin:end, ...] in dimension `axis`."""
    return x[(slice(None),) * axis + (slice(begin, end),)]


def _concat_shape(types: Sequence[TensorType | None], attrs: Mapping[str, Attr]) -> tuple[TensorType, ...]:
    a, b = (t for t in types if t is not None)
    axis = int(str(attrs["axis"]))
    left, right = a.shape[axis], b.shape[axis]
    rest = [t.shape[:axis] + t.shape[axis + 1 :] for t in (a, b)]
    if a.dtype != b.dtype or rest[0] != rest[1] or not (isinstance(left, int) and isinstance(right, int)):
        raise ShapeError(f"concat of {a} and {b} in dimension {axis}")
    return (TensorType(a.dtype, (*a.shape[:axis], left + right, *a.shape[axis + 1 :])),)


@op("a: any, b: any -> any", shape=_concat_shape)
def concat(a: F32, b: F32, *, axis: int) -> F32:
    """a, then b, in dimension `axis`."""
    return np.concatenate([a, b], axis)


def _reshape_shape(types: Sequence[TensorType | None], attrs: Mapping[str, Attr]) -> tuple[TensorType, ...]:
    (x,) = (t for t in types if t is not None)
    shape = attrs["shape"]
    assert isinstance(shape, tuple)

    def split(dims: tuple[Dim, ...]) -> tuple[list[str], int]:
        numbers = [d for d in dims if isinstance(d, int)]
        return [d for d in dims if isinstance(d, str)], int(np.prod(numbers, dtype=np.int64))

    symbols = len(split(shape)[0])
    if split(x.shape) != split(shape) or any(isinstance(d, int) for d in shape[:symbols]):
        raise ShapeError(f"reshape of {x} to {list(shape)}")
    return (TensorType(x.dtype, shape),)


@op("x: any -> any", shape=_reshape_shape)
def reshape(x: F32, *, shape: tuple[Dim, ...]) -> F32:
    """The same elements in another shape; symbols come first."""
    return x.reshape([x.shape[i] if isinstance(d, str) else d for i, d in enumerate(shape)])


def _transpose_shape(types: Sequence[TensorType | None], attrs: Mapping[str, Attr]) -> tuple[TensorType, ...]:
    (x,) = (t for t in types if t is not None)
    axes = attrs["axes"]
    if not isinstance(axes, tuple) or sorted(map(int, axes)) != list(range(len(x.shape))):
        raise ShapeError(f"transpose of {x} by {axes}")
    return (TensorType(x.dtype, tuple(x.shape[int(a)] for a in axes)),)


@op("x: any -> any", shape=_transpose_shape)
def transpose(x: F32, *, axes: tuple[int, ...]) -> F32:
    """Dimensions in another order."""
    return np.ascontiguousarray(x.transpose(axes))


def _expand_shape(types: Sequence[TensorType | None], attrs: Mapping[str, Attr]) -> tuple[TensorType, ...]:
    (x,) = (t for t in types if t is not None)
    axis, size = (int(str(attrs[k])) for k in ("axis", "size"))
    return (TensorType(x.dtype, (*x.shape[:axis], size, *x.shape[axis:])),)


@op("x: any -> any", shape=_expand_shape)
def expand(x: F32, *, axis: int, size: int) -> F32:
    """A new dimension `axis` along which x is repeated."""
    return np.repeat(np.expand_dims(x, axis), size, axis)


@op("pos: i32[n], inv_freq: f32[d] -> f32[n, 2*d]")
def rope_angles(pos: I32, inv_freq: F32, *, scale: float) -> F32:
    """cos and sin of pos * inv_freq, side by side, times YaRN's attention factor (Peng et al., 2023)."""
    angle = pos[:, None].astype(np.float32) * inv_freq
    return np.concatenate([np.cos(angle), np.sin(angle)], -1) * np.float32(scale)


def _rope_shape(types: Sequence[TensorType | None], attrs: Mapping[str, Attr]) -> tuple[TensorType, ...]:
    x, angles = (t for t in types if t is not None)
    if x.shape[0] != angles.shape[0] or x.shape[-1] != angles.shape[-1]:
        raise ShapeError(f"rope of {x} by angles {angles}")
    return (x,)


@op("x: f32, angles: f32[n, d] -> f32", shape=_rope_shape)
def rope(x: F32, angles: F32, *, interleaved: bool) -> F32:
    """Rotary position embedding of x[n, ..., d] (Su et al., 2021).

    Interleaved pairs are (2i, 2i+1), else (i, i + d/2); the result is always [real parts | imaginary parts].
    """
    half = x.shape[-1] // 2
    wide = angles.reshape(len(angles), *[1] * (x.ndim - 2), 2 * half)
    cos, sin = wide[..., :half], wide[..., half:]
    a, b = (x[..., 0::2], x[..., 1::2]) if interleaved else (x[..., :half], x[..., half:])
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1, dtype=np.float32)


@op("cache: float[pages, page, w], rows: f32[n, w], seq: i32[n], pos: i32[n], table: i32[b, p] -> any",
    shape=lambda types, attrs: (_present(types[0]),))  # fmt: skip
def cache_write(cache: F32, rows: F32, seq: I32, pos: I32, table: I32) -> F32:
    """The cache with the rows stored at their positions."""
    page = cache.shape[1]
    out = cache.copy()
    out[table[seq, pos // page], pos % page] = rows
    return out


def _present(type_: TensorType | None) -> TensorType:
    assert type_ is not None
    return type_


@op("cache: float[pages, page, w], table: i32[b, p] -> f32[b, p*page, w]")
def cache_read(cache: F32, table: I32) -> F32:
    """All positions of each sequence, in order."""
    return cache[table].reshape(len(table), -1, cache.shape[-1])


@op("q: f32[n, h, d], k: f32[b, t, h, d], v: f32[b, t, h, dv], seq: i32[n], pos: i32[n] -> f32[n, h, dv]")
def attend(q: F32, k: F32, v: F32, seq: I32, pos: I32, *, scale: float) -> F32:
    """Causal attention of each row over its own sequence: softmax(scale * q k^T) v over positions <= pos."""
    out = np.empty((*q.shape[:2], v.shape[-1]), np.float32)
    for i, (s, p) in enumerate(zip(seq, pos, strict=True)):
        scores = np.einsum("hd,thd->ht", q[i], k[s, : p + 1]).astype(np.float64) * scale
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        out[i] = np.einsum("ht,thd->hd", weights, v[s, : p + 1])
    return out


@op("x: f32[n, e] -> f32[n, e]")
def mask_groups(x: F32, *, groups: int, keep: int, best: int) -> F32:
    """-inf outside the `keep` groups whose `best` greatest scores sum highest.

    The sum of two in DeepSeek-V3 (report, section 2.1.2), the greatest alone in V2 (paper, section 2.1.3).
    """
    grouped = x.reshape(len(x), groups, -1)
    score = np.sort(grouped, -1)[..., -best:].sum(-1)
    kept = np.argsort(-score, -1, kind="stable")[:, :keep]
    mask = np.full(grouped.shape, -np.inf, np.float32)
    np.put_along_axis(mask, kept[..., None], 0, 1)
    return (grouped + mask).reshape(x.shape)


@op("x: f32[n, e] -> i32[n, k]")
def topk(x: F32, *, k: int) -> I32:
    """Indices of the k greatest, greatest first; ties to the lower index."""
    return np.argsort(-x, -1, kind="stable")[:, :k].astype(np.int32)


@op("x: f32[n, e], ids: i32[n, k] -> f32[n, k]")
def gather(x: F32, ids: I32) -> F32:
    """x[i, ids[i, j]]."""
    return np.take_along_axis(x, ids, -1)


@op("x: f32[n, k] -> f32[n, k]")
def normalize(x: F32) -> F32:
    """Each row divided by its sum (+ 1e-20)."""
    return x / (x.sum(-1, keepdims=True) + np.float32(1e-20))


@op("route: i32[n, l, k] -> i32[n, k]")
def forced_route(route: I32, *, layer: int) -> I32:
    """The expert choice that a test forces on one layer (`--debug-route`)."""
    return route[:, layer]


@op("x: f32[n, k, i], w: float[e, o, i], ids: i32[n, k] -> f32[n, k, o]")
def expert_linear(x: F32, w: F32, ids: I32) -> F32:
    """Each slot times the matrix of its expert."""
    out = np.empty((*ids.shape, w.shape[1]), np.float32)
    for expert in np.unique(ids):
        chosen = ids == expert
        out[chosen] = x[chosen] @ w[expert].T
    return out


@op("y: f32[n, k, h], weights: f32[n, k] -> f32[n, h]")
def combine(y: F32, weights: F32) -> F32:
    """Sum over the slots of a row, weighted."""
    return np.einsum("nkh,nk->nh", y, weights)


@op("logits: f32[r, v], temperature: f32[r], top_k: i32[r], top_p: f32[r], min_p: f32[r], seed: i32[r, two], "
    "position: i32[r] -> i32[r]")  # fmt: skip
def sample(logits: F32, temperature: F32, top_k: I32, top_p: F32, min_p: F32, seed: I32, position: I32) -> I32:
    """One token a row: greedy at temperature 0, else drawn by Philox keyed with seed and position.

    It is -1 where the largest logit is not finite.
    """
    return sample_tokens(logits, temperature, top_k, top_p, min_p, seed, position)
