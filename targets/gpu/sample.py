"""Sampling: thresholds by narrowing a range instead of a sort, and a draw by exact integer mass.

The meaning, bit for bit, is `deepzig.sampling`, which also says why the weights are integers. One block of threads
has a row. It reads the row a few times: for the greatest logit; for each filter until few tokens are left to decide
about, whose keys it then keeps; and for the draw.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from tvm import tirx
from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from deepzig.sampling import MIN_TEMPERATURE, NO_TOKEN
from deepzig.targets.emit import Expr, kernel, loop, store, symbols, when

from .choice import Choice, each_read, halves
from .device import SUBGROUP, Gpu
from .emit import barrier, device, launch, registers, settled, subgroup_sum, uniform, variable
from .greatest import INFINITE, NEVER, block_first, place
from .wide import Wide, select

AHEAD = 4
"""Logits that a thread reads at once, where code need not be short."""
LOG2_E = float(np.float32(math.log2(math.e)))


@cache
def sample(vocab: int, gpu: Gpu) -> PrimFunc:
    """Kernel that draws one token a row.

    Args:
        vocab: logits a row.
        gpu: the device.

    Returns:
        (logits f32[r, vocab], temperature f32[r], top_k i32[r], top_p f32[r], min_p f32[r], seed i32[r, 2],
        position i32[r], tokens i32[r]), the last written.
    """
    ahead = 1 if gpu.compact else AHEAD
    threads = min(gpu.max_threads, -(-vocab // SUBGROUP) * SUBGROUP)
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
        with launch(threads, r) as t:
            row = t.block[0]
            best, where = variable(T.int32(NEVER), "int32"), variable(T.int32(0), "int32")

            def better(j: Expr, found: Expr) -> None:
                with when(found > best[0]):
                    store(best, found, 0)
                    store(where, T.Cast("int32", j), 0)

            each_read(t, vocab, ahead, lambda j: place(LOGITS[row, j]), better)
            greatest, first = block_first(t, best[0], where[0])
            token = variable(first, "int32")
            greatest = uniform(greatest)
            finite = T.bind(tirx.all(greatest < T.int32(INFINITE), greatest > T.int32(-INFINITE)))
            with when(tirx.Not(finite)):
                store(token, T.int32(NO_TOKEN), 0)
            with when(tirx.all(finite, TEMPERATURE[row] > T.float32(0))):
                tempered = T.max(TEMPERATURE[row], T.float32(MIN_TEMPERATURE))
                scale = device("divide", T.float32(LOG2_E), tempered, returns="float32")
                top = T.bind(LOGITS[row, first])
                chosen = Choice(t, vocab, ahead, scale, lambda j: top - LOGITS[row, j])
                with when(tirx.all(TOP_K[row] > 0, TOP_K[row] < vocab)):
                    chosen.restrict(False, lambda _: Wide.of(T.Cast("uint32", TOP_K[row])))
                with when(TOP_P[row] < T.float32(1)):
                    chosen.restrict(True, lambda total: share(total, TOP_P[row]))
                floor = T.bind(T.ceil(T.min(T.max(MIN_P[row], T.float32(0)), T.float32(1.5)) * T.float32(2**31)))
                word = philox(POSITION[row], SEED[row, 0], SEED[row, 1])
                store(token, draw(chosen, T.bind(T.Cast("uint32", floor)), word), 0)
            with when(t.thread == 0):
                store(TOKENS, token[0], row)
    return f.function


def share(total: Wide, part: Expr) -> Wide:
    """Emit `part` of the total, in units of 2^-24, rounded up, at least 1."""
    units = T.bind(T.Cast("uint32", T.ceil(T.max(part, T.float32(0)) * T.float32(2**24))))
    whole = Wide.product(total.shifted(24).low, units)
    low = Wide.product(T.bitwise_and(total.low, T.uint32(2**24 - 1)), units) + Wide.of(T.uint32(2**24 - 1))
    reached = whole + low.shifted(24)
    return select(tirx.all(reached.low == T.uint32(0), reached.high == T.uint32(0)), Wide.of(T.uint32(1)), reached)


def philox(position: Expr, *seed: Expr) -> Expr:
    """Emit ten rounds of Philox4x32 (Salmon et al., 2011); the first word is the draw."""
    a, b, c, d = T.Cast("uint32", position), T.uint32(0), T.uint32(0), T.uint32(0)
    keys = [T.bind(T.Cast("uint32", word)) for word in seed]
    for turn in range(10):
        left, right = Wide.product(a, T.uint32(0xD2511F53)), Wide.product(c, T.uint32(0xCD9E8D57))
        low, high = (
            key + T.uint32(step * turn % 2**32) for key, step in zip(keys, (0x9E3779B9, 0xBB67AE85), strict=True)
        )
        a, c = (
            settled(T.bitwise_xor(T.bitwise_xor(product.high, word), key))
            for product, word, key in ((right, b, low), (left, d, high))
        )
        b, d = right.low, left.low
    return a


def draw(chosen: Choice, floor: Expr, word: Expr) -> Expr:
    """Emit the search for the token in whose weight the share word / 2^32 of the mass lies.

    Args:
        chosen: the tokens.
        floor: the least weight that counts, u32, but for the best tokens'.
        word: u32.
    """
    t, parts, sums = chosen.t, chosen.t.count // SUBGROUP, chosen.sums

    def weight_at(j: Expr) -> Expr:
        key, held = chosen.key(j), variable(T.uint32(0), "uint32")
        with when(key <= chosen.limit[0]):
            weight = chosen.weight(key)
            with when(tirx.any(weight >= floor, key == T.int32(0))):
                store(held, weight, 0)
        return T.bind(held[0])

    begin = variable(T.int32(0), "int32")
    before, target = Wide.of(T.uint32(0)).kept(), Wide.of(T.uint32(0)).kept()

    def advance(count: int, part: int, first: bool) -> None:
        """Emit the step into one of `count` parts, of `part` tokens each, whose mass is in `sums`."""
        if first:
            total = Wide.of(T.uint32(0)).kept()
            with loop(count) as i:
                total.set(total.get() + halves(sums[0, i], sums[1, i]))
            mass = total.get()
            share_of_low = device("multiply_high", mass.low, word, returns="uint32")
            target.set(Wide.product(mass.high, word) + Wide.of(share_of_low))
        place = variable(T.int32(0), "int32")
        with loop(count - 1) as i:
            reached = before.get() + halves(sums[0, i], sums[1, i])
            with when(tirx.all(T.Cast("int64", place[0]) == i, tirx.Not(target.get() < reached))):
                before.set(reached)
                store(place, place[0] + 1, 0)
        store(begin, begin[0] + place[0] * T.int32(part), 0)

    size = chosen.vocab
    while size > SUBGROUP:
        part = -(-size // parts)
        start = T.bind(T.Cast("int64", begin[0]) + t.subgroup * part)
        own = registers(2, dtype="uint32")
        store(own, T.uint32(0), 0)
        store(own, T.uint32(0), 1)
        with loop(-(-part // SUBGROUP)) as turn:
            place = T.bind(turn * SUBGROUP + t.lane)
            token = T.bind(start + place)
            with when(tirx.all(place < part, token < begin[0] + size, token < chosen.vocab)):
                held = weight_at(token)
                store(own, own[0] + T.bitwise_and(held, T.uint32(0xFFFF)), 0)
                store(own, own[1] + T.shift_right(held, T.uint32(16)), 1)
        low, high = subgroup_sum(own[0]), subgroup_sum(own[1])
        barrier()
        with when(t.lane == 0):
            store(sums, low, 0, t.subgroup)
            store(sums, high, 1, t.subgroup)
        barrier()
        advance(parts, part, size == chosen.vocab)
        size = part
    barrier()
    with when(t.thread < size):
        token = T.bind(T.Cast("int64", begin[0]) + t.thread)
        inside = token < chosen.vocab
        held = T.bind(T.Select(inside, weight_at(T.min(token, T.int64(chosen.vocab - 1))), T.uint32(0)))
        store(sums, T.bitwise_and(held, T.uint32(0xFFFF)), 0, t.thread)
        store(sums, T.shift_right(held, T.uint32(16)), 1, t.thread)
    barrier()
    advance(size, 1, size == chosen.vocab)
    return begin[0]
