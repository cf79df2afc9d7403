"""Latent attention for few rows a sequence, on cache rows of bf16, by products of pairs (`bf16`).

Queries and weights are rounded to bf16; scores, sums and the softmax are f32. Of a section of the context:

    scores[position, head]   sums over pairs of columns. Heads lie side by side in a vector, so the words of a cache row
                             are the left matrix of a product, and the softmax over positions has no sums across lanes
    latent[head, column]     sums over pairs of positions: two rows of the cache, whose words are put together anew
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from deepzig.targets.emit import Buffer, Expr, kernel, loop, store, symbols, when

from .bf16 import dot, instructions, pair_of, pair_words, pairs_tile
from .cache import pages
from .emit import each_row, vector_of, vector_sum, view, workspace
from .layout import LANES, blocks, padded
from .product import Columns, Elements
from .sections import Found, Section, by_sections, pages_at_most
from .softmax import MASKED
from .vector import at, dtype, exp, prefetch, splat, transposed

WIDE = 2 * LANES
"""Columns of a cache row in a vector of words."""
BLOCKS = 4
"""Blocks of 16 heads of a task, where there are so many."""
KEYS = 16
"""Scores of so many positions and blocks of heads are summed together."""
MEANS = 8
"""Heads whose latents are summed together, for 32 columns."""


@cache
def mla_attend_pairs(heads: int, kv_lora: int, rope: int, page: int, scale: float) -> PrimFunc:
    """Kernel of causal attention in latent space, for a cache of bf16 with at least 32 columns a row.

    Returns:
        The same as `attention.mla_attend`.
    """
    cw, cl = padded(kv_lora + rope), padded(kv_lora)
    held = min(blocks(heads), BLOCKS)
    groups = -(-blocks(heads) // held)
    lines, parts = KEYS // held, -(-kv_lora // WIDE)
    positions = pages_at_most(page) * page
    with kernel("mla_attend_pairs", heads, kv_lora, rope, page, scale) as f:
        n, b, p, number = symbols("n b p pages")
        Q = f.tensor("absorbed", "f32", n, heads, cw)
        CACHE = pages(f, number, page, "bf16", kv_lora + rope)
        SEQ, POS = f.tensor("seq", "i32", n), f.tensor("pos", "i32", n)
        TABLE = f.tensor("table", "i32", b, p)
        Y = f.tensor("latent", "f32", n, heads, cl)
        instructions()
        rows = view(CACHE, number * page, cw)
        flat = view(CACHE, number * page * cw)
        queries = packed_queries(Q, scale)

        def attend(task: Section, found: Found) -> None:
            places = workspace(positions + lines, dtype="int64")
            coming = workspace(positions + lines, dtype="int64")
            scores = workspace(held, padded(positions) + LANES, LANES)
            weights = workspace(held, padded(positions) // 2, LANES, dtype="uint32")
            sequence, first = T.bind(SEQ[task.row]), task.begin * page
            count = T.bind(T.min(task.end * page, T.Cast("int64", POS[task.row]) + 1) - first)
            last = T.bind(T.Cast("int64", POS[task.row] // page))
            with loop(count) as t:
                for kept, begin in (places, task.begin), (coming, task.end):
                    block = T.min(begin + t // page, last)
                    store(kept, T.Cast("int64", TABLE[sequence, block]) * page + t % page, t)
            with loop(count + lines, count) as t:
                for kept in places, coming:
                    store(kept, kept[count - 1], t)
            taken = [T.bind(T.min(task.group * held + i, blocks(heads) - 1)) for i in range(held)]

            part = Columns(queries, [(task.row, block) for block in taken], cw, "bf16", streamed=False)
            with loop((count + (lines - 1)) // lines) as tile:
                begin = T.bind(places[tile * lines])
                following = T.bind(places[T.min((tile + 1) * lines, count - 1)])

                def key(i: int) -> Callable[[Expr], Expr]:
                    """The words of the tile's row i: what is beyond the last position is computed and not read."""
                    place = T.bind(begin + i if page % lines == 0 else places[tile * lines + i])

                    def word(pair: Expr) -> Expr:
                        if i == 0:
                            prefetch(flat[following * cw + pair * (2 * lines)])
                        return T.reinterpret("uint32", rows[place, T.ramp(2 * pair, 1, 2)])

                    return word

                for i, totals in enumerate(pairs_tile(part, range(lines), key)):
                    for block, total in enumerate(totals):
                        store(scores, total[at(0)], block, tile * lines + i, at(0))
            pairs = T.bind((count + 1) // 2)
            for block in range(held):
                with when(count % 2 == 1):
                    store(scores, splat(MASKED), block, count, at(0))
                kept = at((task.group * held + block) * LANES)
                peaks, masses = weigh(scores, weights, block, count, pairs)
                store(found.peaks, peaks, task.place, kept)
                store(found.masses, masses, task.place, kept)
            with loop(count) as t:
                for c in range(parts, -(-cw // WIDE)):
                    prefetch(rows[coming[t], c * WIDE], soon=False)
            with loop(parts) as c:
                column = T.bind(T.min(c * WIDE, cw - WIDE))
                with loop(held * LANES // MEANS) as some:
                    block, lane = T.bind(some * MEANS // LANES), T.bind(some * MEANS % LANES)
                    sums = [[vector_sum() for _ in range(2)] for _ in range(MEANS)]
                    with loop(pairs) as pair:
                        prefetch(rows[coming[2 * pair + some % 2], column], soon=False)
                        values = together(rows, [T.bind(places[2 * pair + i]) for i in range(2)], column)
                        for i, totals in enumerate(sums):
                            weight = T.bind(T.broadcast(weights[block, pair, lane + i], LANES))
                            for total, value in zip(totals, values, strict=True):
                                store(total, dot(total[at(0)], value, weight), at(0))
                    for i, totals in enumerate(sums):
                        head = task.group * (held * LANES) + some * MEANS + i
                        for half, total in enumerate(totals):
                            store(found.sums, total[at(0)], task.place, head, at(c * WIDE + half * LANES))

        def write(row: Expr, head: Expr, c: Expr, means: Sequence[Expr]) -> None:
            column = T.bind(T.min(c * WIDE, cw - WIDE))
            for half in range(2):
                some = T.Shuffle(means, [from_pairs(half * LANES + i) for i in range(LANES)])
                with when(column + half * LANES < cl):
                    store(Y, some, row, head, at(column + half * LANES))

        by_sections(POS, p, page, heads, groups, (groups * held * LANES, parts * WIDE), attend, write, unit=2)
    return f.function


def packed_queries(query: Buffer, scale: float) -> Buffer:
    """Emit the rounding of scaled queries f32[n, heads, cw] to words[n, blocks of heads, cw / 2, 16]."""
    n, heads, cw = query.shape[0], int(query.shape[1]), int(query.shape[2])
    packed = workspace(n, blocks(heads), cw // 2, LANES, dtype="uint32")

    def one(number: Expr) -> None:
        row, block = T.bind(number // blocks(heads)), T.bind(number % blocks(heads))
        taken = [T.bind(T.min(block * LANES + lane, heads - 1)) for lane in range(LANES)]
        with loop(-(-cw // WIDE)) as c:
            first = T.bind(T.min(c * WIDE, cw - WIDE))
            lines = [T.bind(pair_words(scaled(row, head), first)) for head in taken]
            for pair, words in enumerate(transposed(lines)):
                store(packed, words, row, block, first // 2 + pair, at(0))

    def scaled(row: Expr, head: Expr) -> Elements:
        return lambda i: query[row, head, i] * splat(scale)

    each_row(n * blocks(heads), one)
    return packed


def weigh(scores: Buffer, weights: Buffer, block: int, count: Expr, pairs: Expr) -> tuple[Expr, Expr]:
    """Emit the softmax of scores[block, :count], rounded to pairs of bf16: the peaks and the masses of its heads."""
    peak, mass = vector_of(scores[block, 0, at(0)]), vector_sum()
    with loop(count, 1) as t:
        store(peak, T.max(peak[at(0)], scores[block, t, at(0)]), at(0))
    top = T.bind(peak[at(0)])
    with loop(pairs) as pair:
        both = [T.bind(exp(T.bind(scores[block, 2 * pair + i, at(0)] - top))) for i in range(2)]
        store(mass, mass[at(0)] + both[0] + both[1], at(0))
        store(weights, pair_of(*both), block, pair, at(0))
    return top, mass[at(0)]


def together(rows: Buffer, places: list[Expr], column: Expr) -> list[Expr]:
    """Emit the pairs of two rows' elements in 32 columns, half of them in each vector (`from_pairs`).

    The instruction that interleaves words does it in each eighth of its operands.
    """
    both = [T.bind(rows[place, T.ramp(column, 1, WIDE)]) for place in places]
    halves = []
    for half in range(2):
        order = [lane // 8 * 8 + half * 4 + lane % 8 // 2 + lane % 2 * WIDE for lane in range(WIDE)]
        halves.append(T.bind(T.reinterpret(dtype("uint32"), T.Shuffle(both, order))))
    return halves


def from_pairs(column: int) -> int:
    """Where the two vectors of `together`, one after the other, have a column."""
    return column % 8 // 4 * LANES + column // 8 * 4 + column % 4
