"""Products with weights of 8-bit floats: codes are widened in registers, and the sum of a block is scaled.

Widening is exact, to f32 or, where there are products of pairs, to bf16. Each 128 elements along the inner dimension
are four chains of products: every fourth word of four elements is of the same. Their sums are added in order, and so
are those of all groups, times their scales. So the bits of a result do not depend on the tile. A row alone has its
chains side by side, so as not to wait for one. Several rows have one chain after the other: registers suffice for that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from tvm.script import tirx as T

from deepzig.ir.fp8 import E4M3, SIDE
from deepzig.targets.emit import Buffer, Expr, loop, store

from .bf16 import dot
from .emit import each_vector, local, vector_sum
from .layout import LANES
from .product import Columns, Input, scale_of
from .vector import at, dtype, fma, splat, words

STEP = 4
"""Codes in a word of 32 bits."""
CHAINS = 4
"""Of one, a row alone would wait for the latency of a product."""
LIFT, LOWER = 2.0**64, 2.0**56
"""What a row is multiplied by before, and its sums after: codes as f32 are 2^-120 times as large, and their products
with a row, as it is, would leave the normal range."""
BIAS, MAGNITUDE, EXPONENT = 120 << 7, 0x87F0, 0x0780
"""Of a code as bf16: what its exponent lacks; the bits that it has, and of these its exponent."""
APART = 2
"""Elements of a pair lie so far apart: two shifts make pairs of bf16 of a word of codes, of every other one."""

Factors = Callable[[Expr, int], Callable[[Expr], list[Expr]]]
"""(group, elements of it) -> number of a word -> what the row has for each of the word's vectors."""


@dataclass(frozen=True)
class Form:
    """What codes become, and how that is multiplied.

    Attributes:
        widen: words of codes, one in each lane -> vectors.
        factors: the left matrix's row -> its factors.
        multiply: (sums, vector, factor in all lanes) -> sums.
        lower: what a group's sums are multiplied by.
    """

    widen: Callable[[Expr], list[Expr]]
    factors: Callable[[Callable[[Expr], Expr]], Factors]
    multiply: Callable[[Expr, Expr, Expr], Expr]
    lower: float


def fp8_tile(columns: Columns, lines: Sequence[Expr], x: Input, form: Form) -> list[list[Buffer]]:
    """Sums over k of x(line)(k) * weight[k] for each line and block.

    Args:
        columns: right matrix, packed by `pack_quantized`.
        lines: rows of the tile.
        x: left matrix, as the form has it.
        form: how codes are multiplied.

    Returns:
        Of each row, for each block, a local vector of f32.
    """
    weight, blocks, size = columns.weight, columns.blocks, columns.size
    rows = [form.factors(x(line)) for line in lines]
    cells = [(line, column) for line in range(len(rows)) for column in range(len(blocks))]
    sums = [vector_sum() for _ in cells]

    def word(g: Expr, number: Expr, factors: Sequence[Callable[[Expr], list[Expr]]], chains: Sequence[Buffer]) -> None:
        """Four elements of each column, added to the chain of its cell."""
        for block in blocks if columns.ahead else ():
            columns.fetch(columns.coming(block, g * int(weight.shape[-2]) + number))
        values = [form.widen(T.bind(weight[(*block, g, number, at(0))])) for block in blocks]
        for i in range(len(values[0])):
            lanes = [T.bind(T.broadcast(row(number)[i], LANES)) for row in factors]
            for (line, column), chain in zip(cells, chains, strict=True):
                store(chain, form.multiply(chain[at(0)], values[column][i], lanes[line]), at(0))

    def finish(g: Expr, parts: Sequence[Buffer]) -> None:
        for (_, column), total, part in zip(cells, sums, parts, strict=True):
            scale = scale_of(weight, blocks[column], g)
            store(total, fma(part[at(0)] * splat(form.lower), scale, total[at(0)]), at(0))

    def several(g: Expr, count: int) -> None:
        """A group of several cells."""
        factors, every = [row(g, count) for row in rows], words_of(count)
        parts = [vector_sum() for _ in cells]
        for c in range(CHAINS):
            chain = [vector_sum() for _ in cells] if c else parts
            with loop((every - c + CHAINS - 1) // CHAINS) as i:
                word(g, i * CHAINS + c, factors, chain)
            if c:
                add(parts, chain)
        finish(g, parts)

    def alone(g: Expr, count: int) -> None:
        """A group of one cell."""
        factors, every = [row(g, count) for row in rows], words_of(count)
        parts, *more = ([vector_sum()] for _ in range(CHAINS))
        with loop(every // CHAINS) as i:
            for c, chain in enumerate((parts, *more)):
                word(g, i * CHAINS + c, factors, chain)
        for number in range(every // CHAINS * CHAINS, every):
            word(g, T.int64(number), factors, (parts, *more)[number % CHAINS])
        for chain in more:
            add(parts, chain)
        finish(g, parts)

    group = several if len(cells) > 1 else alone
    with loop(size // SIDE) as g:
        group(g, SIDE)
    if size % SIDE:
        group(T.int64(size // SIDE), size % SIDE)
    return [sums[i : i + len(blocks)] for i in range(0, len(sums), len(blocks))]


def words_of(count: int) -> int:
    """Words that so many codes of a column take."""
    return -(-count // STEP)


def add(sums: Sequence[Buffer], more: Sequence[Buffer]) -> None:
    """Emit sums[i] += more[i] for local vectors."""
    for total, part in zip(sums, more, strict=True):
        store(total, total[at(0)] + part[at(0)], at(0))


def lifted(x: Callable[[Expr], Expr]) -> Factors:
    """The factors of a row of f32: its elements, times LIFT."""
    row = local(SIDE)

    def group(g: Expr, count: int) -> Callable[[Expr], list[Expr]]:
        each_vector(count, lambda i, lanes: store(row, x(g * SIDE + i) * splat(LIFT, lanes), i))
        for beyond in range(count, words_of(count) * STEP):
            store(row, T.float32(0), beyond)
        return lambda number: [row[number * STEP + i] for i in range(STEP)]

    return group


def paired(x: Callable[[Expr], Expr]) -> Factors:
    """The factors of a row from `bf16.rounded`: its words of pairs that are APART."""
    return lambda g, _: lambda number: [x(g * (SIDE // 2) + number * (STEP // 2) + i) for i in range(STEP // 2)]


def as_floats(codes: Expr) -> list[Expr]:
    """The four e4m3 numbers of each u32 word, the lowest byte's first, as f32 and 2^-120 times as large."""
    halves = [T.bind(T.reinterpret(dtype("uint32"), half)) for half in _moved(codes)]
    low = [T.shift_left(half, words(16)) for half in halves]
    high = [T.bitwise_and(half, words(0xFFFF0000)) for half in halves]
    return [T.bind(T.reinterpret(dtype("float32"), value)) for value in (*low, *high)]


def as_pairs(codes: Expr) -> list[Expr]:
    """Two words of bf16 numbers for each word of four e4m3 numbers: of the even ones, and of the odd ones.

    `vdpbf16ps` takes subnormal numbers for zero, which those of e4m3 are as long as the exponent is too small. A table
    has what such a one lacks.
    """
    count = 2 * LANES
    lacking = [int(np.float32(E4M3[m]).view(np.uint32) >> 16) - (m << 4) for m in range(8)]
    table = T.Shuffle([_short(lacking[i % 8]) for i in range(count)], list(range(count)))
    numbers = T.reinterpret(dtype("int16", count), codes)
    found = []
    for bits, number in zip(_moved(codes), (numbers, T.shift_right(numbers, _shorts(8))), strict=True):
        of_table = T.call_llvm_pure_intrin(dtype("int16", count), "llvm.x86.avx512.permvar.hi.512", table, number)
        subnormal = T.bitwise_and(bits, _shorts(EXPONENT)) == _shorts(0)
        found.append(bits + T.Select(subnormal, of_table, _shorts(BIAS)))
    return [T.bind(T.reinterpret(dtype("uint32"), value)) for value in found]


def _moved(codes: Expr) -> list[Expr]:
    """The even and the odd codes of each word as the upper halves of f32 numbers, 2^-120 times as large.

    In the high byte of 16 bits, and moved down by 4 bits with its sign kept in place, an e4m3 number is the upper half
    of an f32 whose exponent is 120 too small, subnormal numbers among them. None is NaN.
    """
    pairs = T.bind(T.reinterpret(dtype("int16", 2 * LANES), codes))
    both = T.shift_left(pairs, _shorts(8)), pairs
    return [T.bind(T.bitwise_and(T.shift_right(half, _shorts(4)), _shorts(MAGNITUDE))) for half in both]


def _short(bits: int) -> Expr:
    """The 16-bit number that has these bits."""
    return T.int16((bits + 0x8000) % 0x10000 - 0x8000)


def _shorts(bits: int) -> Expr:
    """It in all lanes."""
    return T.broadcast(_short(bits), 2 * LANES)


FLOATS = Form(as_floats, lifted, lambda total, value, factor: fma(factor, value, total), LOWER)
PAIRS = Form(as_pairs, paired, dot, 1.0)
