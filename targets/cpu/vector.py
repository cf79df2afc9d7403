"""Expressions on vectors of floats that the CPU kernels share.

All of them are portable: LLVM splits a vector of `LANES` floats into whatever registers the machine has. `fma` is
written out, never left to the contraction of `a * b + c`: one rounding is part of a kernel's meaning, since results
must not depend on the code around it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tvm.script import tirx as T

from deepzig.targets.emit import Expr

from .layout import LANES

LOG2_E = 1.4426950408889634
LN2_HIGH = 0.693359375
"""ln 2 to 9 bits: its product with any exponent is exact in f32."""
LN2_LOW = -2.12194440054690583e-4
EXP_TAIL = (0.49999994, 0.16666521, 0.04166839, 0.0083687166, 0.0013814599)
"""(e^r - 1 - r) / r^2 for |r| <= ln(2) / 2: a minimax fit, lowest power first; e^r errs by less than 4e-9."""
EXP_MIN, EXP_MAX = -87.33654, 88.37626
"""Where e^x leaves the normal f32 range, and where 2^round(x / ln 2) does."""


def dtype(base: str, lanes: int = LANES) -> str:
    """`float32` of 16 lanes is `float32x16`, of one lane `float32`."""
    return base if lanes == 1 else f"{base}x{lanes}"


def splat(value: Expr, lanes: int = LANES) -> Expr:
    """A scalar expression, or a Python float meant as f32, in all lanes."""
    scalar = T.float32(value) if isinstance(value, (int, float)) else value
    return scalar if lanes == 1 else T.broadcast(scalar, lanes)


def words(value: int, lanes: int = LANES) -> Expr:
    """A u32 constant in all lanes."""
    return T.uint32(value) if lanes == 1 else T.broadcast(T.uint32(value), lanes)


def at(start: Expr, lanes: int = LANES) -> Expr:
    """The index of `lanes` consecutive elements."""
    return start if lanes == 1 else T.ramp(start, 1, lanes)


def fma(a: Expr, b: Expr, c: Expr, lanes: int = LANES) -> Expr:
    """`a * b + c` in f32, rounded once."""
    return T.call_llvm_pure_intrin(dtype("float32", lanes), "llvm.fma", a, b, c)


def total(x: Expr) -> Expr:
    """The sum of a vector's lanes, from the first to the last."""
    return T.call_llvm_pure_intrin("float32", "llvm.vector.reduce.fadd", T.float32(0), x)


def tree_sum(x: Expr) -> Expr:
    """The sum of a vector's lanes, halves first: four dependent additions instead of fifteen."""
    return _tree(x, lambda a, b: a + b)


def tree_max(x: Expr, base: str = "float32") -> Expr:
    """The greatest of a vector's lanes, of any type, halves first."""
    return _tree(x, T.max, base)


def _tree(x: Expr, combine: Callable[[Expr, Expr], Expr], base: str = "float32") -> Expr:
    lanes = LANES
    while lanes > 2:
        lanes //= 2
        half = dtype(base, lanes)
        x = T.bind(combine(T.vectorlow(half, x), T.vectorhigh(half, x)))
    return combine(*(T.Shuffle([x], [lane]) for lane in range(2)))


def transposed(rows: Sequence[Expr]) -> list[Expr]:
    """Vectors of which each has the elements of one column: of 16 rows [16] the 16 columns.

    Of 8 rows, in two halves each, the 8 columns of the first halves, then, in the same vectors, those of the second.
    Each step swaps one bit of an element's row with one of its lane (Eklundh, 1972).
    """
    swapped = list(rows)
    for step in (1 << bit for bit in range(len(swapped).bit_length() - 1)):
        low = [T.int32(lane + (LANES - step if lane & step else 0)) for lane in range(LANES)]
        high = [T.int32(lane + (LANES if lane & step else step)) for lane in range(LANES)]
        for i in (i for i in range(len(swapped)) if not i & step):
            both = [swapped[i], swapped[i + step]]
            swapped[i], swapped[i + step] = (T.bind(T.Shuffle(both, lanes)) for lanes in (low, high))
    return swapped


def exp(x: Expr, lanes: int = LANES) -> Expr:
    """e^x in f32 with a relative error below 2e-7; 0 below `EXP_MIN`, e^EXP_MAX above `EXP_MAX`.

    e^x = 2^k e^r with k = round(x / ln 2), so |r| <= ln(2) / 2, where a polynomial does. Not for NaN.
    """
    bounded = T.bind(T.min(T.max(x, splat(EXP_MIN, lanes)), splat(EXP_MAX, lanes)))
    scaled = bounded * splat(LOG2_E, lanes)
    k = T.bind(T.call_llvm_pure_intrin(dtype("float32", lanes), "llvm.rint", scaled))
    r = T.bind(fma(k, splat(-LN2_LOW, lanes), fma(k, splat(-LN2_HIGH, lanes), bounded, lanes), lanes))
    tail = splat(EXP_TAIL[-1], lanes)
    for coefficient in EXP_TAIL[-2::-1]:
        tail = fma(tail, r, splat(coefficient, lanes), lanes)
    power = fma(tail, r * r, r, lanes) + splat(1.0, lanes)
    exponent = T.Cast(dtype("uint32", lanes), T.Cast(dtype("int32", lanes), k)) + words(127, lanes)
    two_to_k = T.reinterpret(dtype("float32", lanes), T.shift_left(exponent, words(23, lanes)))
    return T.Select(x < splat(EXP_MIN, lanes), splat(0.0, lanes), power * two_to_k)


def sigmoid(x: Expr, lanes: int = LANES) -> Expr:
    """1 / (1 + e^-x)."""
    return splat(1.0, lanes) / (splat(1.0, lanes) + exp(T.bind(-x), lanes))


def silu(x: Expr, lanes: int = LANES) -> Expr:
    """x * sigmoid(x)."""
    return x / (splat(1.0, lanes) + exp(T.bind(-x), lanes))


def widen(pairs: Expr, wdtype: str, odd: bool, lanes: int = LANES) -> Expr:
    """The exact f32 values of one half of u32 words, each of which holds two 2-byte floats.

    Args:
        pairs: the words; even elements in the low halves, odd ones in the high halves.
        wdtype: `bf16`, the upper half of an f32; or `f16` (finite; subnormal numbers are exact too).
        odd: which half.
        lanes: how many words.
    """
    if not odd:
        return widen_high(T.shift_left(pairs, words(16, lanes)), wdtype, lanes)
    # What is below an f16 is masked after its move.
    high = T.bitwise_and(pairs, words(0xFFFF0000, lanes)) if wdtype == "bf16" else pairs
    return widen_high(high, wdtype, lanes)


def widen_high(high: Expr, wdtype: str, lanes: int = LANES) -> Expr:
    """The exact f32 values of bf16 or finite f16 numbers in the high halves of u32 words; for bf16 the rest is zero."""
    if wdtype == "bf16":
        return T.reinterpret(dtype("float32", lanes), high)
    # An f16 moved down by 3 bits, sign kept in place, is an f32 whose exponent is 112 too small.
    three = T.int32(3) if lanes == 1 else T.broadcast(T.int32(3), lanes)
    moved = T.shift_right(T.reinterpret(dtype("int32", lanes), high), three)
    bits = T.bitwise_and(T.reinterpret(dtype("uint32", lanes), moved), words(0x8FFFE000, lanes))
    return T.reinterpret(dtype("float32", lanes), bits) * splat(2.0**112, lanes)


ONCE, LATER, SOON = 0, 2, 3
"""How long a line is kept: while it is read and in no other cache than the first, from the second cache on, in all."""


def prefetch(element: Expr, keep: int = SOON) -> None:
    """Ask for the cache line of a buffer element; `keep` is `ONCE`, `LATER` or `SOON`."""
    read, data = T.int32(0), T.int32(1)
    T.evaluate(T.call_llvm_intrin("void", "llvm.prefetch", T.address_of(element), read, T.int32(keep), data))
