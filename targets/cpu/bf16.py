"""Products of bf16 by `vdpbf16ps` (AVX512-BF16; Intel's Software Developer's Manual, volume 2).

One instruction adds, to each of 16 sums, the products of two pairs of bf16: twice the work of a multiply-add, and
weights need no widening. Rows of the left matrix are rounded to bf16 once, to nearest even; sums are f32. Each sum is
one chain of instructions along the inner dimension, so its bits depend neither on the number of rows nor on the tile.
"""

from __future__ import annotations

from collections.abc import Sequence

from tvm.script import tirx as T
from tvm.script.ir_builder import tirx as builder

from deepzig.targets.emit import Buffer, Expr, extent, loop, store

from .cache import half_bits
from .emit import vector_of, vector_sum, workspace
from .layout import LANES
from .product import Columns, Elements, Encoding, Input, Start
from .vector import at, dtype, words

FUNCTION = "deepzig_dpbf16"
CODE = f"""
target triple = "x86_64-unknown-linux-gnu"
declare <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float>, <32 x bfloat>, <32 x bfloat>)
define linkonce_odr <16 x float> @{FUNCTION}(<16 x float> %sum, <16 x i32> %a, <16 x i32> %b) alwaysinline nounwind {{
  %x = bitcast <16 x i32> %a to <32 x bfloat>
  %y = bitcast <16 x i32> %b to <32 x bfloat>
  %r = call <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float> %sum, <32 x bfloat> %x, <32 x bfloat> %y)
  ret <16 x float> %r
}}
"""
"""The instruction on words of pairs: TVM takes no vectors of bf16, which it makes f32 of, in calls."""


def dot(total: Expr, a: Expr, b: Expr) -> Expr:
    """total + the products of the pairs in the u32 words of `a` and `b`; `instructions` must come before it."""
    return T.call_pure_extern(dtype("float32"), FUNCTION, total, a, b)


def instructions() -> None:
    """Emit what `dot` needs, once in a kernel."""
    with builder.attr(T.int32(0), "pragma_import_llvm", CODE):
        T.evaluate(T.int32(0))


def pairs_tile(columns: Columns, rows: Sequence[Expr], x: Input, start: Start | None = None) -> list[list[Buffer]]:
    """Sums over k of x(row)(k) * weight[k] for each row and block, in registers.

    Args:
        columns: right matrix, bf16.
        rows: row of each line of the tile.
        x: left matrix, from `rounded`: row -> pair -> its word.
        start: what the sums are added to, if not zero.
    """
    weight, blocks = columns.weight, columns.blocks
    lines = [x(row) for row in rows]
    sums = [[vector_of(start(row, block)) if start else vector_sum() for block in blocks] for row in rows]
    with loop(-(-columns.size // 2)) as pair:
        vectors = []
        for block in blocks:
            if columns.ahead:
                columns.fetch(columns.coming(block, pair))
            vectors.append(T.bind(weight[(*block, pair, at(0))]))
        for line, totals in zip(lines, sums, strict=True):
            word = T.bind(T.broadcast(line(pair), LANES))
            for total, vector in zip(totals, vectors, strict=True):
                store(total, dot(total[at(0)], vector, word), at(0))
    return sums


def pair_words(elements: Elements, begin: Expr, apart: int = 1) -> Expr:
    """Emit the rounding of 32 elements from `begin` on to words of pairs, of elements that lie so far apart."""
    both = [T.bind(elements(at(begin + half * LANES))) for half in range(2)]
    low = [lane // apart * (2 * apart) + lane % apart for lane in range(LANES)]
    return pair_of(*(T.bind(T.Shuffle(both, [i + further for i in low])) for further in (0, apart)))


def pair_of(even: Expr, odd: Expr, lanes: int = LANES) -> Expr:
    """Words of pairs of f32 numbers, rounded; the first in the low halves."""
    low, high = (half_bits(x, "bf16", lanes) for x in (even, odd))
    return T.bitwise_or(low, T.shift_left(high, words(16, lanes)))


def rounded(x: Input, rows: Expr, size: int, apart: int = 1) -> Encoding:
    """The rounding of rows to bf16 into a workspace, from where pairs are read.

    Args:
        x: row -> index or vector of indices -> elements.
        rows: how many.
        size: elements of a row.
        apart: how far apart the elements of a pair lie: pairs have each element once, zeros follow the last.
    """
    instructions()
    whole, every = size // (2 * LANES) * LANES, -(-size // (2 * apart)) * apart
    pairs = workspace(rows, every, dtype="uint32")

    def one(row: Expr) -> None:
        elements = x(row)

        def element(i: int) -> Expr:
            return T.bind(elements(extent(i))) if i < size else T.float32(0)

        with loop(whole // LANES) as c:
            store(pairs, pair_words(elements, c * (2 * LANES), apart), row, at(c * LANES))
        for pair in range(whole, every):
            first = pair // apart * (2 * apart) + pair % apart
            store(pairs, pair_of(element(first), element(first + apart), 1), row, pair)

    return Encoding(lambda row: lambda pair: pairs[row, pair], one)
