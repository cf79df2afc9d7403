"""Sampling: thresholds by radix selection instead of a sort, and a draw by exact integer mass.

The meaning, bit for bit, is `deepzig.ir.sampling`, which also says why the weights are integers.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from deepzig.ir.sampling import EXP2_COEFFICIENTS, MIN_TEMPERATURE

from .kernel import named
from .layout import LANES

LOG2_E = float(np.float32(math.log2(math.e)))
ALL_KEYS = 2**31 - 1
LOW_WORD = 2**32 - 1


def _splat(value: Any) -> Any:
    return T.broadcast(value, LANES)


def _weights(gap: Any, scale: Any) -> Any:
    """2^31 * 2^(-gap * scale) of 16 gaps, in fixed point."""
    halvings = T.min(gap * _splat(scale), _splat(T.float32(32)))
    fixed = T.Cast("uint32x16", T.Cast("int32x16", halvings * _splat(T.float32(2**24))))
    part = T.Cast("uint64x16", T.bitwise_and(fixed, _splat(T.uint32(2**24 - 1))))
    mantissa = _splat(T.uint32(EXP2_COEFFICIENTS[-1]))
    for coefficient in EXP2_COEFFICIENTS[-2::-1]:
        product = T.shift_right(T.Cast("uint64x16", mantissa) * part, _splat(T.uint64(24)))
        mantissa = _splat(T.uint32(coefficient)) - T.Cast("uint32x16", product)
    # 64-bit lanes, since shifting 32-bit ones by 32 is undefined.
    whole = T.Cast("uint64x16", T.shift_right(fixed, _splat(T.uint32(24))))
    return T.Cast("uint32x16", T.shift_right(T.Cast("uint64x16", mantissa), whole))


def _word(x: Any) -> Any:
    """The low 32 bits of a signed word, in 64 bits."""
    return T.bitwise_and(T.Cast("uint64", x), T.uint64(LOW_WORD))


@T.inline
def _narrow(gaps, amount, limit, prefix, below, target, histogram, vocab, shift, width):  # type: ignore[no-untyped-def]
    """Append the digit at `shift` to the prefix of the smallest key up to which the amounts reach the target."""
    for d in T.serial(2**width):
        histogram[d] = T.uint64(0)
    for j in T.serial(vocab):
        key: T.let = T.reinterpret("uint32", gaps[j])
        if T.shift_right(key, T.uint32(shift + width)) == prefix[0] and key <= limit[0]:
            digit: T.let = T.Cast("int32", T.bitwise_and(T.shift_right(key, T.uint32(shift)), T.uint32(2**width - 1)))
            histogram[digit] = histogram[digit] + amount(j)
    last = T.alloc_buffer((1,), "int32", scope="global")
    last[0] = 0
    while last[0] < 2**width - 1 and below[0] + histogram[last[0]] < target[0]:
        below[0] = below[0] + histogram[last[0]]
        last[0] = last[0] + 1
    prefix[0] = T.bitwise_or(T.shift_left(prefix[0], T.uint32(width)), T.Cast("uint32", last[0]))


@T.inline
def _select(gaps, amount, limit, target, histogram, vocab):  # type: ignore[no-untyped-def]
    """Lower the limit to the smallest key up to which the amounts of the keys within it reach the target.

    Gaps are not negative, so their bits order them, and the top bit is zero: three digits.
    """
    prefix = T.alloc_buffer((1,), "uint32", scope="global")
    below = T.alloc_buffer((1,), "uint64", scope="global")
    prefix[0] = T.uint32(0)
    below[0] = T.uint64(0)
    _narrow(gaps, amount, limit, prefix, below, target, histogram, vocab, 20, 11)
    _narrow(gaps, amount, limit, prefix, below, target, histogram, vocab, 10, 10)
    _narrow(gaps, amount, limit, prefix, below, target, histogram, vocab, 0, 10)
    limit[0] = prefix[0]


@T.inline
def _philox(state, key):  # type: ignore[no-untyped-def]
    """Ten rounds of Philox4x32 in place, 32-bit words held in 64 bits."""
    for _ in T.serial(10):
        left: T.let = state[0] * T.uint64(0xD2511F53)
        right: T.let = state[2] * T.uint64(0xCD9E8D57)
        state[0] = T.bitwise_xor(T.bitwise_xor(T.shift_right(right, T.uint64(32)), state[1]), key[0])
        state[2] = T.bitwise_xor(T.bitwise_xor(T.shift_right(left, T.uint64(32)), state[3]), key[1])
        state[1] = T.bitwise_and(right, T.uint64(LOW_WORD))
        state[3] = T.bitwise_and(left, T.uint64(LOW_WORD))
        key[0] = T.bitwise_and(key[0] + T.uint64(0x9E3779B9), T.uint64(LOW_WORD))
        key[1] = T.bitwise_and(key[1] + T.uint64(0xBB67AE85), T.uint64(LOW_WORD))


@cache
def sample(vocab: int) -> PrimFunc:
    """Kernel that draws one token a row.

    Args:
        vocab: logits a row.

    Returns:
        (logits f32[r, vocab], temperature f32[r], top_k i32[r], top_p f32[r], min_p f32[r], seed i32[r, 2],
        position i32[r], tokens i32[r]), the last written.
    """
    blocks = -(-vocab // LANES)

    @T.prim_func(s_tir=True)
    def kernel(  # type: ignore[no-untyped-def]
        logits: T.handle,
        temperature: T.handle,
        top_k: T.handle,
        top_p: T.handle,
        min_p: T.handle,
        seed: T.handle,
        position: T.handle,
        tokens: T.handle,
    ):
        r = T.int64()
        Z = T.match_buffer(logits, (r, vocab), "float32")
        TEMPERATURE = T.match_buffer(temperature, (r,), "float32")
        TOP_K = T.match_buffer(top_k, (r,), "int32")
        TOP_P = T.match_buffer(top_p, (r,), "float32")
        MIN_P = T.match_buffer(min_p, (r,), "float32")
        SEED = T.match_buffer(seed, (r, 2), "int32")
        POSITION = T.match_buffer(position, (r,), "int32")
        OUT = T.match_buffer(tokens, (r,), "int32")
        for i in T.parallel(r):
            best = T.alloc_buffer((1,), "float32", scope="global")
            token = T.alloc_buffer((1,), "int32", scope="global")
            best[0] = Z[i, 0]
            token[0] = 0
            for j in T.serial(vocab):
                if Z[i, j] > best[0]:
                    best[0] = Z[i, j]
                    token[0] = j
            if TEMPERATURE[i] > T.float32(0):
                gaps = T.alloc_buffer((blocks * LANES,), "float32", scope="global")
                weights = T.alloc_buffer((blocks * LANES,), "uint32", scope="global")
                histogram = T.alloc_buffer((2048,), "uint64", scope="global")
                limit = T.alloc_buffer((1,), "uint32", scope="global")
                target = T.alloc_buffer((1,), "uint64", scope="global")
                total = T.alloc_buffer((1,), "uint64", scope="global")
                state = T.alloc_buffer((4,), "uint64", scope="global")
                key = T.alloc_buffer((2,), "uint64", scope="global")
                scale = T.alloc_buffer((1,), "float32", scope="global")

                scale[0] = T.float32(LOG2_E) / T.max(TEMPERATURE[i], T.float32(MIN_TEMPERATURE))
                for j in T.serial(vocab, blocks * LANES):
                    gaps[j] = T.infinity("float32")
                for j in T.serial(vocab):
                    gaps[j] = best[0] - Z[i, j]
                for b in T.serial(blocks):
                    weights[T.ramp(b * LANES, 1, LANES)] = _weights(gaps[T.ramp(b * LANES, 1, LANES)], scale[0])

                limit[0] = T.uint32(ALL_KEYS)
                if TOP_K[i] > 0 and TOP_K[i] < vocab:
                    target[0] = T.Cast("uint64", TOP_K[i])
                    _select(gaps, lambda _: T.uint64(1), limit, target, histogram, vocab)
                if TOP_P[i] < T.float32(1):
                    total[0] = T.uint64(0)
                    for j in T.serial(vocab):
                        if T.reinterpret("uint32", gaps[j]) <= limit[0]:
                            total[0] = total[0] + T.Cast("uint64", weights[j])
                    # The share in units of 2^-24, multiplied in two halves that fit 64 bits.
                    units: T.let = T.Cast(
                        "uint64", T.ceil(T.Cast("float64", T.max(TOP_P[i], T.float32(0))) * T.float64(2**24))
                    )
                    low: T.let = T.bitwise_and(total[0], T.uint64(2**24 - 1)) * units + T.uint64(2**24 - 1)
                    target[0] = T.max(
                        T.uint64(1), T.shift_right(total[0], T.uint64(24)) * units + T.shift_right(low, T.uint64(24))
                    )
                    _select(gaps, lambda j: T.Cast("uint64", weights[j]), limit, target, histogram, vocab)

                floor: T.let = T.Cast("float64", MIN_P[i]) * T.float64(2**31)
                total[0] = T.uint64(0)
                for j in T.serial(vocab):
                    below: T.let = T.Cast("float64", weights[j]) < floor and gaps[j] > T.float32(0)
                    if below or T.reinterpret("uint32", gaps[j]) > limit[0]:
                        weights[j] = T.uint32(0)
                    total[0] = total[0] + T.Cast("uint64", weights[j])

                state[0] = _word(POSITION[i])
                for j in T.unroll(3):
                    state[j + 1] = T.uint64(0)
                for j in T.unroll(2):
                    key[j] = _word(SEED[i, j])
                _philox(state, key)
                high: T.let = T.shift_right(total[0], T.uint64(32)) * state[0]
                target[0] = high + T.shift_right(T.bitwise_and(total[0], T.uint64(LOW_WORD)) * state[0], T.uint64(32))
                token[0] = 0
                total[0] = T.Cast("uint64", weights[0])
                while token[0] < vocab - 1 and total[0] <= target[0]:
                    token[0] = token[0] + 1
                    total[0] = total[0] + T.Cast("uint64", weights[token[0]])
            OUT[i] = token[0]

    return named(kernel, "sample", vocab)
