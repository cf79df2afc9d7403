"""What ops compute that passes left unfused, as tensor expressions: slow, plain, and right for any shape and target.

With the whole pipeline nothing of a model comes here but the forced routes of `--debug-route`. They exist so that
`--fuse-limit` can bisect a wrong fusion: any number of rewrites, none included, gives a model that runs.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tvm import te, tirx
from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from deepzig.ir import Attr, Dim, Node, TensorType, Value
from deepzig.ir.quantize import GROUP

from .base import Emitter, Layout, Operand, Table, Target, Variant
from .emit import STORAGE, Expr, named

Read = Callable[..., Expr]
"""An input: its element at some indices, floats widened to f32."""

Compute = Callable[[Sequence[Read], Sequence[Any], Mapping[str, Any], tuple[Any, ...]], Any]
"""From inputs, their shapes, attributes and the output's shape to the TE tensor of the output."""

tensor: Callable[..., Any] = te.compute

RAW = Layout("raw", lambda t: t, lambda a: a)
HALVES = ("bf16", "f16")
LOWEST = -math.inf


def _each(value: Callable[..., Expr]) -> Compute:
    """An op whose output element needs the inputs' elements at the same place only."""

    def compute(reads: Sequence[Read], shapes: Sequence[Any], attrs: Mapping[str, Any], out: tuple[Any, ...]) -> Any:
        return tensor(out, lambda *i: value(*(read(*i) for read in reads), **attrs))

    return compute


def _sigmoid(x: Expr) -> Expr:
    return T.float32(1) / (T.float32(1) + T.exp(-x))


def _at(index: Callable[..., Expr]) -> Compute:
    """An op that moves elements: `index(inputs, attrs, place)` is the element at a place of the output."""

    def compute(reads: Sequence[Read], shapes: Sequence[Any], attrs: Mapping[str, Any], out: tuple[Any, ...]) -> Any:
        return tensor(out, lambda *place: index(reads, shapes, attrs, place))

    return compute


def _slice(reads: Any, shapes: Any, attrs: Any, place: Any) -> Expr:
    axis = attrs["axis"]
    return reads[0](*place[:axis], place[axis] + attrs["begin"], *place[axis + 1 :])


def _concat(reads: Any, shapes: Any, attrs: Any, place: Any) -> Expr:
    axis = attrs["axis"]
    size = shapes[0][axis]
    other = (*place[:axis], place[axis] - size, *place[axis + 1 :])
    return tirx.if_then_else(place[axis] < size, reads[0](*place), reads[1](*other))


def _reshape(reads: Any, shapes: Any, attrs: Any, place: Any) -> Expr:
    """Symbols come first and stay; the rest is one flat index."""
    shape = attrs["shape"]
    lead = sum(isinstance(d, str) for d in shape)
    flat: Any = 0
    for size, at in zip(shape[lead:], place[lead:], strict=True):
        flat = flat * size + at
    rest = []
    for size in reversed(shapes[0][lead:]):
        rest.append(flat % size)
        flat = flat // size
    return reads[0](*place[:lead], *reversed(rest))


def _transpose(reads: Any, shapes: Any, attrs: Any, place: Any) -> Expr:
    return reads[0](*(at for _, at in sorted(zip(attrs["axes"], place, strict=True), key=lambda pair: int(pair[0]))))


def _rope(reads: Any, shapes: Any, attrs: Any, place: Any) -> Expr:
    x, angles = reads
    *lead, j = place
    half = shapes[1][1] // 2
    i = j % half
    first, second = (2 * i, 2 * i + 1) if attrs["interleaved"] else (i, i + half)
    a, b = x(*lead, first), x(*lead, second)
    cos, sin = angles(place[0], i), angles(place[0], i + half)
    return tirx.if_then_else(j < half, a * cos - b * sin, b * cos + a * sin)


def _cache_read(reads: Any, shapes: Any, attrs: Any, place: Any) -> Expr:
    cache, table = reads
    s, t, j = place
    page = shapes[0][1]
    return cache(table(s, t // page), t % page, j)


def _sum(size: Any, name: str, value: Callable[[Expr], Expr]) -> Expr:
    axis = te.reduce_axis((0, size), name)
    return te.sum(value(axis), axis=axis)


def _linear(reads: Sequence[Read], shapes: Sequence[Any], attrs: Mapping[str, Any], out: tuple[Any, ...]) -> Any:
    x, w = reads[:2]
    product = tensor(out, lambda *i: _sum(shapes[1][1], "k", lambda k: x(*i[:-1], k) * w(i[-1], k)))
    return product if len(reads) == 2 else tensor(out, lambda *i: product(*i) + reads[2](i[-1]))


def _expert_linear(reads: Sequence[Read], shapes: Sequence[Any], attrs: Mapping[str, Any], out: Any) -> Any:
    x, w, ids = reads
    return tensor(out, lambda n, k, o: _sum(shapes[1][2], "i", lambda i: x(n, k, i) * w(ids(n, k), o, i)))


def _combine(reads: Sequence[Read], shapes: Sequence[Any], attrs: Mapping[str, Any], out: tuple[Any, ...]) -> Any:
    y, w = reads
    return tensor(out, lambda n, h: _sum(shapes[1][1], "k", lambda k: y(n, k, h) * w(n, k)))


def _normalize(reads: Sequence[Read], shapes: Sequence[Any], attrs: Mapping[str, Any], out: tuple[Any, ...]) -> Any:
    (x,) = reads
    total = tensor(out[:1], lambda n: _sum(shapes[0][1], "k", lambda k: x(n, k)))
    return tensor(out, lambda n, k: x(n, k) / (total(n) + T.float32(1e-20)))


def _softmax(reads: Sequence[Read], shapes: Sequence[Any], attrs: Mapping[str, Any], out: tuple[Any, ...]) -> Any:
    (x,) = reads
    r = te.reduce_axis((0, shapes[0][1]), "r")
    peak = tensor(out[:1], lambda n: te.max(x(n, r), axis=r))
    weight = tensor(out, lambda n, e: T.exp(x(n, e) - peak(n)))
    mass = tensor(out[:1], lambda n: _sum(shapes[0][1], "e", lambda e: weight(n, e)))
    return tensor(out, lambda n, e: weight(n, e) / mass(n))


def _attend(reads: Sequence[Read], shapes: Sequence[Any], attrs: Mapping[str, Any], out: tuple[Any, ...]) -> Any:
    q, k, v, seq, pos = reads
    n, heads, width = shapes[0]
    length = shapes[1][1]
    scores = (n, heads, length)
    dot = tensor(scores, lambda i, h, t: _sum(width, "d", lambda d: q(i, h, d) * k(seq(i), t, h, d)))
    scale = T.float32(attrs["scale"])
    masked = tensor(scores, lambda i, h, t: T.Select(t <= pos(i), dot(i, h, t) * scale, T.float32(LOWEST)))
    r = te.reduce_axis((0, length), "r")
    peak = tensor((n, heads), lambda i, h: te.max(masked(i, h, r), axis=r))
    weight = tensor(scores, lambda i, h, t: T.exp(masked(i, h, t) - peak(i, h)))
    mass = tensor((n, heads), lambda i, h: _sum(length, "m", lambda t: weight(i, h, t)))

    def seen(i: Expr, h: Expr, t: Expr, d: Expr) -> Expr:
        """A slot not yet written may hold anything, which even weight 0 would let through."""
        return T.Select(t <= pos(i), weight(i, h, t) * v(seq(i), t, h, d), T.float32(0))

    mean = tensor(out, lambda i, h, d: _sum(length, "t", lambda t: seen(i, h, t, d)))
    return tensor(out, lambda i, h, d: mean(i, h, d) / mass(i, h))


def _rank(shape: Any, size: int, x: Callable[..., Expr]) -> Any:
    """How many of the last dimension's elements come before each: greater ones, and equal ones of lower index."""

    def before(*place: Expr) -> Expr:
        *lead, e = place

        def counts(j: Expr) -> Expr:
            ahead = tirx.any(x(*lead, j) > x(*lead, e), tirx.all(x(*lead, j) == x(*lead, e), j < e))
            return T.Select(ahead, T.int32(1), T.int32(0))

        return _sum(size, "j", counts)

    return tensor(shape, before)


def _topk(reads: Sequence[Read], shapes: Sequence[Any], attrs: Mapping[str, Any], out: tuple[Any, ...]) -> Any:
    (x,) = reads
    size = shapes[0][1]
    rank = _rank(shapes[0], size, x)

    def pick(n: Expr, k: Expr) -> Expr:
        return _sum(size, "e", lambda e: T.Select(rank(n, e) == k, T.Cast("int32", e.var), T.int32(0)))

    return tensor(out, pick)


def _mask_groups(reads: Sequence[Read], shapes: Sequence[Any], attrs: Mapping[str, Any], out: tuple[Any, ...]) -> Any:
    (x,) = reads
    groups, keep, best = attrs["groups"], attrs["keep"], attrs["best"]
    n, size = shapes[0]
    each = size // groups
    member = _rank((n, groups, each), each, lambda i, g, e: x(i, g * each + e))

    def sum_of_best(i: Expr, g: Expr) -> Expr:
        return _sum(each, "e", lambda e: T.Select(member(i, g, e) < best, x(i, g * each + e), T.float32(0)))

    score = tensor((n, groups), sum_of_best)
    place = _rank((n, groups), groups, score)
    return tensor(out, lambda i, e: T.Select(place(i, e // each) < keep, x(i, e), T.float32(LOWEST)))


COMPUTE: dict[str, Compute] = {
    "add": _each(lambda a, b: a + b),
    "mul": _each(lambda a, b: a * b),
    "scale": _each(lambda x, by: x * T.float32(by)),
    "sigmoid": _each(_sigmoid),
    "silu": _each(lambda x: x * _sigmoid(x)),
    "bias_add": _at(lambda reads, shapes, attrs, place: reads[0](*place) + reads[1](place[-1])),
    "slice": _at(_slice),
    "concat": _at(_concat),
    "reshape": _at(_reshape),
    "transpose": _at(_transpose),
    "expand": _at(lambda reads, shapes, attrs, place: reads[0](*place[: attrs["axis"]], *place[attrs["axis"] + 1 :])),
    "rope": _at(_rope),
    "cache_read": _at(_cache_read),
    "gather": _at(lambda reads, shapes, attrs, place: reads[0](place[0], reads[1](*place))),
    "forced_route": _at(lambda reads, shapes, attrs, place: reads[0](place[0], attrs["layer"], place[1])),
    "linear": _linear,
    "expert_linear": _expert_linear,
    "combine": _combine,
    "normalize": _normalize,
    "softmax": _softmax,
    "attend": _attend,
    "topk": _topk,
    "mask_groups": _mask_groups,
}
"""Op -> what computes it."""


Widen = Callable[[Expr, str], Expr]
"""The f32 value of the stored bits of a bf16 or f16."""

Plain = Callable[[str, Sequence[TensorType], Mapping[str, Attr], TensorType], PrimFunc]
"""From an op, its inputs in their physical types, attributes and output to the kernel (inputs, output)."""


def compute(
    op: str, inputs: Sequence[TensorType], attrs: Mapping[str, Attr], output: TensorType, widen: Widen
) -> PrimFunc:
    """Unscheduled kernel (inputs in their physical types, output), of one block for each stage.

    Ops that only move half-precision floats move their bits.
    """
    symbols: dict[str, Any] = {}

    def dims(shape: Sequence[Dim], solve: bool) -> tuple[Any, ...]:
        return tuple(d if isinstance(d, int) else _dim(d, symbols, solve) for d in shape)

    buffers = [te.placeholder(dims(t.shape, False), STORAGE[t.dtype], f"x{i}") for i, t in enumerate(inputs)]
    reads = [_reader(b, t.dtype, output, widen) for b, t in zip(buffers, inputs, strict=True)]
    shapes = [tuple(b.shape) for b in buffers]
    static = [tuple(int(d) if isinstance(d, tirx.IntImm) else d for d in s) for s in shapes]
    result = COMPUTE[op](reads, static, attrs, dims(output.shape, True))
    text = f"{op}{[str(t) for t in inputs]}{sorted(attrs.items())}{output}"
    return named(te.create_prim_func([*buffers, result]), "plain", op, hashlib.sha256(text.encode()).hexdigest()[:12])


def _dim(name: str, symbols: dict[str, Any], solve: bool) -> Any:
    """A symbol of the kernel. A product can't define its factors: as an input's size it is a symbol of its own."""
    factors = name.split("*")
    if solve and len(factors) == 2 and name not in symbols and factors[0] in symbols:
        return symbols[factors[0]] * int(factors[1])
    return symbols.setdefault(name, tirx.Var(name.replace("*", "_"), "int64"))


def _reader(buffer: Any, dtype: str, output: TensorType, widen: Widen) -> Read:
    if dtype == "i8":  # a cache, of whose rows all columns are read
        return lambda page, slot, column: _element(buffer, page, slot, column, int(output.shape[-1]))
    if dtype not in HALVES or output.dtype in HALVES:
        return lambda *i: buffer(*i)
    return lambda *i: widen(buffer(*i), dtype)


def _element(cache: Read, page: Expr, slot: Expr, column: Expr, width: int) -> Expr:
    """One column of a cache row of q8: codes in groups, then the four bytes of each group's scale."""
    begin = -(-width // GROUP) * GROUP + column // GROUP * 4
    byte = [T.Cast("uint32", T.Cast("uint8", cache(page, slot, begin + i))) for i in range(4)]
    bits = byte[0] | byte[1] << T.uint32(8) | byte[2] << T.uint32(16) | byte[3] << T.uint32(24)
    return T.Cast("float32", cache(page, slot, column)) * T.reinterpret("float32", bits)


def _operand(e: Emitter, value: Value, target: Target) -> tuple[Operand, TensorType]:
    if value.kind == "param":
        return e.weight(RAW, value), value.type
    is_cache = "pages" in value.shape
    return e.value(value), target.state_type(value.type) if is_cache else value.type


def table(plain: Plain, cache_write: Callable[[int, int, str], PrimFunc]) -> Table:
    """Every op that a traced model may still hold when no pass has run, but for those that have a kernel anyway.

    Args:
        plain: a target's kernel of an op.
        cache_write: from the width of rows, the positions of a page and the cache's element type to the kernel
            (rows f32[n, width], seq, pos, table, cache) that stores rows in place.
    """

    def lower(e: Emitter, node: Node, target: Target) -> Operand:
        operands = [_operand(e, value, target) for value in node.inputs if value is not None]
        kernel = plain(node.op.name, [t for _, t in operands], node.attrs, node.output.type)
        return e.call(kernel, [operand for operand, _ in operands], node.output.type)

    def write(e: Emitter, node: Node, target: Target) -> Operand:
        cache, rows, seq, pos, pages = (v for v in node.inputs if v is not None)
        kernel = cache_write(int(rows.shape[1]), int(cache.shape[1]), cache.type.dtype)
        return e.update(kernel, [e.value(v) for v in (rows, seq, pos, pages, cache)])

    return {**{name: (Variant(lower),) for name in COMPUTE}, "cache_write": (Variant(write),)}
