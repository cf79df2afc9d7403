"""Sampling: thresholds by radix selection instead of a sort, and a draw by exact integer mass.

The meaning, bit for bit, is `deepzig.sampling`, which also says why the weights are integers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from tvm import tirx
from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from deepzig.sampling import EXP2_COEFFICIENTS, MIN_TEMPERATURE, NO_TOKEN
from deepzig.targets.emit import Buffer, Expr, kernel, loop, repeat, store, symbols, when

from .emit import each_vector, local, parallel, variable, vector_of, workspace
from .layout import LANES, padded
from .product import Elements
from .vector import at, dtype, splat, tree_max, words

LOG2_E = float(np.float32(math.log2(math.e)))
NEVER = float("-inf")
INFINITE = 0x7F800000
"""The bits of infinity."""
ALL_KEYS = 2**31 - 1
LOW_WORD = 2**32 - 1
DIGITS = ((20, 11), (10, 10), (0, 10))
"""Shift and width of the digits of a key: gaps are not negative, so their bits order them, and the top bit is zero."""


@cache
def sample(vocab: int) -> PrimFunc:
    """Kernel that draws one token a row.

    Args:
        vocab: logits a row.

    Returns:
        (logits f32[r, vocab], temperature f32[r], top_k i32[r], top_p f32[r], min_p f32[r], seed i32[r, 2],
        position i32[r], tokens i32[r]), the last written.
    """
    with kernel("sample", vocab) as f:
        (r,) = symbols("r")
        LOGITS = f.tensor("logits", "f32", r, vocab)
        TEMPERATURE = f.tensor("temperature", "f32", r)
        TOP_K = f.tensor("top_k", "i32", r)
        TOP_P = f.tensor("top_p", "f32", r)
        MIN_P = f.tensor("min_p", "f32", r)
        SEED = f.tensor("seed", "i32", r, 2)
        POSITION = f.tensor("position", "i32", r)
        TOKENS = f.tensor("tokens", "i32", r)
        with parallel(r) as row:
            best, finite = largest_of(LOGITS, row, vocab)
            token = variable(T.int32(NO_TOKEN), "int32")
            greedy = T.bind(TEMPERATURE[row] <= T.float32(0))
            with when(tirx.all(finite, greedy)):
                store(token, T.int32(0), 0)
                with repeat(LOGITS[row, token[0]] != best):
                    store(token, token[0] + 1, 0)
            with when(tirx.all(finite, tirx.Not(greedy))):
                gaps, weights = workspace(padded(vocab)), workspace(padded(vocab), dtype="uint32")
                scale = T.bind(T.float32(LOG2_E) / T.max(TEMPERATURE[row], T.float32(MIN_TEMPERATURE)))
                with loop(padded(vocab), vocab) as j:
                    store(gaps, T.infinity("float32"), j)

                def gap(places: Expr, lanes: int) -> None:
                    # not -0, whose bits are not in order
                    zero = splat(0.0, lanes)
                    store(gaps, T.max(splat(best, lanes) - LOGITS[row, places], zero), places)

                each_vector(vocab, gap)
                with loop(padded(vocab) // LANES) as c:
                    store(weights, weights_of(T.bind(gaps[at(c * LANES)]), scale), at(c * LANES))

                chosen = Choice(gaps, vocab, variable(T.uint32(ALL_KEYS), "uint32"), workspace(2048, dtype="uint64"))
                with when(tirx.all(TOP_K[row] > 0, TOP_K[row] < vocab)):
                    chosen.restrict(lambda _: T.uint64(1), T.Cast("uint64", TOP_K[row]))
                with when(TOP_P[row] < T.float32(1)):
                    all_mass = chosen.mass(weights)
                    # The share in units of 2^-24, multiplied in two halves that fit 64 bits.
                    share = T.Cast("float64", T.max(TOP_P[row], T.float32(0)))
                    units = T.bind(T.Cast("uint64", T.ceil(share * T.float64(2**24))))
                    low = T.bitwise_and(all_mass, T.uint64(2**24 - 1)) * units + T.uint64(2**24 - 1)
                    target = T.shift_right(all_mass, T.uint64(24)) * units + T.shift_right(low, T.uint64(24))
                    chosen.restrict(lambda j: T.Cast("uint64", weights[j]), T.max(T.uint64(1), target))

                floor = T.bind(T.Cast("float64", MIN_P[row]) * T.float64(2**31))
                mass = variable(T.uint64(0), "uint64")
                with loop(vocab) as j:
                    small = tirx.all(T.Cast("float64", weights[j]) < floor, gaps[j] > T.float32(0))
                    with when(tirx.any(small, tirx.Not(chosen.has(j)))):
                        store(weights, T.uint32(0), j)
                    store(mass, mass[0] + T.Cast("uint64", weights[j]), 0)
                draw(token, weights, vocab, mass[0], philox(POSITION[row], SEED[row, 0], SEED[row, 1]))
            store(TOKENS, token[0], row)
    return f.function


def largest_of(logits: Buffer, row: Expr, vocab: int) -> tuple[Expr, Expr]:
    """Emit the search for a row's largest logit: its value, and whether it is finite and no logit is NaN."""
    best, bits = vector_of(splat(NEVER)), local(dtype="uint32")
    store(bits, words(0), at(0))
    with loop(vocab // LANES) as c:
        some = T.bind(logits[row, at(c * LANES)])
        store(best, T.max(best[at(0)], some), at(0))
        store(bits, T.max(bits[at(0)], magnitude(some)), at(0))
    top, peak = variable(tree_max(T.bind(best[at(0)]))), variable(tree_max(T.bind(bits[at(0)]), "uint32"), "uint32")
    with loop(vocab, vocab // LANES * LANES) as j:
        logit = T.bind(logits[row, j])
        store(top, T.max(top[0], logit), 0)
        store(peak, T.max(peak[0], magnitude(logit, 1)), 0)
    found = T.bind(top[0])
    finite = magnitude(found, 1) < T.uint32(INFINITE)
    return found, T.bind(tirx.all(finite, peak[0] <= T.uint32(INFINITE)))


def magnitude(x: Expr, lanes: int = LANES) -> Expr:
    """The bits of a float without its sign: of infinity INFINITE, of NaN more."""
    return T.bitwise_and(T.reinterpret(dtype("uint32", lanes), x), words(2**31 - 1, lanes))


def weights_of(gap: Expr, scale: Expr) -> Expr:
    """2^31 * 2^(-gap * scale) of 16 gaps, in fixed point."""

    def lanes(base: str, value: Expr) -> Expr:
        return T.Cast(dtype(base), value)

    halvings = T.min(gap * splat(scale), splat(32.0))
    fixed = T.bind(lanes("uint32", lanes("int32", halvings * splat(2.0**24))))
    part = T.bind(lanes("uint64", T.bitwise_and(fixed, splat(T.uint32(2**24 - 1)))))
    mantissa = splat(T.uint32(EXP2_COEFFICIENTS[-1]))
    for coefficient in EXP2_COEFFICIENTS[-2::-1]:
        product = T.shift_right(lanes("uint64", mantissa) * part, splat(T.uint64(24)))
        mantissa = T.bind(splat(T.uint32(coefficient)) - lanes("uint32", product))
    # 64-bit lanes, since shifting 32-bit ones by 32 is undefined.
    whole = lanes("uint64", T.shift_right(fixed, splat(T.uint32(24))))
    return lanes("uint32", T.shift_right(lanes("uint64", mantissa), whole))


@dataclass(frozen=True)
class Choice:
    """The tokens that may still be drawn: those whose key, the bits of their gap to the best logit, is within a limit.

    Attributes:
        gaps: f32[vocab] and more.
        vocab: how many tokens.
        limit: u32[1], the greatest key.
        histogram: u64[2048], room for work.
    """

    gaps: Buffer
    vocab: int
    limit: Buffer
    histogram: Buffer

    def key(self, j: Expr) -> Expr:
        """The key of a token."""
        return T.reinterpret("uint32", self.gaps[j])

    def has(self, j: Expr) -> Expr:
        """Whether a token may be drawn."""
        return self.key(j) <= self.limit[0]

    def mass(self, weights: Buffer) -> Expr:
        """Emit the sum of the chosen tokens' weights."""
        total = variable(T.uint64(0), "uint64")
        with loop(self.vocab) as j, when(self.has(j)):
            store(total, total[0] + T.Cast("uint64", weights[j]), 0)
        return T.bind(total[0])

    def restrict(self, amount: Elements, target: Expr) -> None:
        """Emit what lowers the limit to the smallest key up to which the amounts reach the target."""
        target = T.bind(target)
        prefix, below = variable(T.uint32(0), "uint32"), variable(T.uint64(0), "uint64")
        for shift, width in DIGITS:
            with loop(2**width) as d:
                store(self.histogram, T.uint64(0), d)
            with loop(self.vocab) as j:
                key = T.bind(self.key(j))
                with when(tirx.all(T.shift_right(key, T.uint32(shift + width)) == prefix[0], key <= self.limit[0])):
                    digit = T.bitwise_and(T.shift_right(key, T.uint32(shift)), T.uint32(2**width - 1))
                    digit = T.bind(T.Cast("int32", digit))
                    store(self.histogram, self.histogram[digit] + amount(j), digit)
            last = variable(T.int32(0), "int32")
            short = below[0] + self.histogram[last[0]] < target
            with repeat(tirx.all(last[0] < 2**width - 1, short)):
                store(below, below[0] + self.histogram[last[0]], 0)
                store(last, last[0] + 1, 0)
            digit = T.Cast("uint32", last[0])
            store(prefix, T.bitwise_or(T.shift_left(prefix[0], T.uint32(width)), digit), 0)
        store(self.limit, prefix[0], 0)


def philox(position: Expr, *seed: Expr) -> Expr:
    """Emit ten rounds of Philox4x32 (Salmon et al., 2011), 32-bit words held in 64 bits; the first word is the draw."""

    def low(x: Expr) -> Expr:
        return T.bitwise_and(x, T.uint64(LOW_WORD))

    state, key = local(4, "uint64"), local(2, "uint64")
    for i, word in enumerate((position, 0, 0, 0)):
        store(state, low(T.Cast("uint64", word)), i)
    for i, word in enumerate(seed):
        store(key, low(T.Cast("uint64", word)), i)
    with loop(10):
        left = T.bind(state[0] * T.uint64(0xD2511F53))
        right = T.bind(state[2] * T.uint64(0xCD9E8D57))
        for i, product in ((0, right), (2, left)):
            high = T.shift_right(product, T.uint64(32))
            store(state, T.bitwise_xor(T.bitwise_xor(high, state[i + 1]), key[i // 2]), i)
            store(state, low(product), i + 1)
        for i, step in enumerate((0x9E3779B9, 0xBB67AE85)):
            store(key, low(key[i] + T.uint64(step)), i)
    return T.bind(state[0])


def draw(token: Buffer, weights: Buffer, vocab: int, mass: Expr, word: Expr) -> None:
    """Emit the search for the token in whose weight the share word / 2^32 of the mass lies."""
    high = T.shift_right(mass, T.uint64(32)) * word
    target = T.bind(high + T.shift_right(T.bitwise_and(mass, T.uint64(LOW_WORD)) * word, T.uint64(32)))
    total = variable(T.Cast("uint64", weights[0]), "uint64")
    store(token, T.int32(0), 0)
    with repeat(tirx.all(token[0] < vocab - 1, total[0] <= target)):
        store(token, token[0] + 1, 0)
        store(total, total[0] + T.Cast("uint64", weights[token[0]]), 0)
