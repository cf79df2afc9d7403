"""Latent attention for few rows a sequence, on cache rows of bf16, by products of pairs (`bf16`).

Queries and weights are rounded to bf16; scores, sums and the softmax are f32. Of a section of the context:

    scores[position, head]   sums over pairs of columns. Heads lie side by side in a vector, so the words of a cache row
                             are the left matrix of a product, and the softmax over positions has no sums across lanes
    latent[head, column]     sums over pairs of positions: two rows of the cache, whose words are put together anew
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
from .vector import LATER, at, dtype, exp, prefetch, splat, transposed

WIDE = 2 * LANES
"""Columns of a cache row in a vector of words."""
BLOCKS = 4
"""Blocks of 16 heads of a task, where there are so many."""
KEYS = 16
"""Scores of so many positions and blocks of heads are summed together."""
MEANS = 8
"""Heads whose latents are summed together, for 32 columns."""


@dataclass(frozen=True)
class Context:
    """The positions of a section, which are rows of the cache.

    Attributes:
        rows: the cache, words of 16 bits [row, column].
        page: rows a page.
        count: positions of the section.
        places: position -> row; what follows the last one repeats it.
        coming: the same of the section that follows, with which a thread goes on.
    """

    rows: Buffer
    page: int
    count: Expr
    places: Buffer
    coming: Buffer


@cache
def mla_attend_pairs(heads: int, kv_lora: int, rope: int, page: int, scale: float) -> PrimFunc:
    """Kernel of causal attention in latent space, for a cache of bf16 with at least 32 columns a row.

    Returns:
        The same as `attention.mla_attend`.
    """
    cw, cl = padded(kv_lora + rope), padded(kv_lora)
    held = min(blocks(heads), BLOCKS)
    groups, parts = -(-blocks(heads) // held), -(-kv_lora // WIDE)
    with kernel("mla_attend_pairs", heads, kv_lora, rope, page, scale) as f:
        n, b, p, number = symbols("n b p pages")
        Q = f.tensor("absorbed", "f32", n, heads, cw)
        CACHE = pages(f, number, page, "bf16", kv_lora + rope)
        SEQ, POS = f.tensor("seq", "i32", n), f.tensor("pos", "i32", n)
        TABLE = f.tensor("table", "i32", b, p)
        Y = f.tensor("latent", "f32", n, heads, cl)
        instructions()
        queries = packed_queries(Q, scale)

        def attend(task: Section, found: Found) -> None:
            context = context_of(task, view(CACHE, number * page, cw), page, SEQ, POS, TABLE)
            taken = [T.bind(T.min(task.group * held + i, blocks(heads) - 1)) for i in range(held)]
            of_heads = Columns(queries, [(task.row, block) for block in taken], cw, "bf16", streamed=False)
            weights = weigh(context, score(context, of_heads), found, task, held)
            with loop(context.count) as t:
                for c in range(parts, -(-cw // WIDE)):
                    prefetch(context.rows[context.coming[t], c * WIDE], LATER)
            with loop(parts) as c, loop(held * LANES // MEANS) as some:
                sums = means(context, weights, T.bind(T.min(c * WIDE, cw - WIDE)), some)
                for i, halves in enumerate(sums):
                    head = task.group * (held * LANES) + some * MEANS + i
                    for half, total in enumerate(halves):
                        store(found.sums, total[at(0)], task.place, head, at(c * WIDE + half * LANES))

        def write(row: Expr, head: Expr, c: Expr, joined: Sequence[Expr]) -> None:
            column = T.bind(T.min(c * WIDE, cw - WIDE))
            for half in range(2):
                some = T.Shuffle(joined, [from_pairs(half * LANES + i) for i in range(LANES)])
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


def context_of(task: Section, rows: Buffer, page: int, seq: Buffer, pos: Buffer, table: Buffer) -> Context:
    """Emit where the positions of a section are in the cache."""
    most = pages_at_most(page) * page
    places, coming = (workspace(most + KEYS, dtype="int64") for _ in range(2))
    sequence, last = T.bind(seq[task.row]), T.bind(T.Cast("int64", pos[task.row] // page))
    count = T.bind(T.min(task.end * page, T.Cast("int64", pos[task.row]) + 1) - task.begin * page)
    with loop(count) as t:
        for kept, begin in (places, task.begin), (coming, task.end):
            block = T.min(begin + t // page, last)
            store(kept, T.Cast("int64", table[sequence, block]) * page + t % page, t)
    with loop(count + KEYS, count) as t:
        for kept in places, coming:
            store(kept, kept[count - 1], t)
    return Context(rows, page, count, places, coming)


def score(context: Context, queries: Columns) -> Buffer:
    """Emit the scores of a section's positions: f32 [block of heads, position, 16], and some of nothing after them."""
    held, width = len(queries.blocks), int(context.rows.shape[1])
    lines, places = KEYS // held, context.places
    scores = workspace(held, padded(pages_at_most(context.page) * context.page) + LANES, LANES)
    flat = view(context.rows, context.rows.shape[0] * width)
    with loop((context.count + (lines - 1)) // lines) as tile:
        first = T.bind(tile * lines)
        following = T.bind(places[T.min(first + lines, context.count - 1)])
        # rows of a page follow each other: one address serves all of a tile
        begin = T.bind(places[first])

        def key(i: int) -> Callable[[Expr], Expr]:
            place = T.bind(begin + i if context.page % lines == 0 else places[first + i])

            def word(pair: Expr) -> Expr:
                if i == 0:
                    prefetch(flat[following * width + pair * (2 * lines)])
                return T.reinterpret("uint32", context.rows[place, T.ramp(2 * pair, 1, 2)])

            return word

        for i, totals in enumerate(pairs_tile(queries, range(lines), key)):
            for block, total in enumerate(totals):
                store(scores, total[at(0)], block, first + i, at(0))
    return scores


def weigh(context: Context, scores: Buffer, found: Found, task: Section, held: int) -> Buffer:
    """Emit the softmax of scores: weights, as words of pairs [block, pair of positions, 16], peaks and masses."""
    weights = workspace(held, (int(scores.shape[1]) - LANES) // 2, LANES, dtype="uint32")
    for block in range(held):
        with when(context.count % 2 == 1):
            store(scores, splat(MASKED), block, context.count, at(0))
        peak, mass = vector_of(scores[block, 0, at(0)]), vector_sum()
        with loop(context.count, 1) as t:
            store(peak, T.max(peak[at(0)], scores[block, t, at(0)]), at(0))
        top = T.bind(peak[at(0)])
        with loop((context.count + 1) // 2) as pair:
            both = [T.bind(exp(T.bind(scores[block, 2 * pair + i, at(0)] - top))) for i in range(2)]
            store(mass, mass[at(0)] + both[0] + both[1], at(0))
            store(weights, pair_of(*both), block, pair, at(0))
        kept = at((task.group * held + block) * LANES)
        store(found.peaks, top, task.place, kept)
        store(found.masses, mass[at(0)], task.place, kept)
    return weights


def means(context: Context, weights: Buffer, column: Expr, some: Expr) -> list[list[Buffer]]:
    """Emit the weighted sums of 32 columns for some heads, MEANS of them: two local vectors each (`from_pairs`)."""
    rows, places = context.rows, context.places
    block, lane = T.bind(some * MEANS // LANES), T.bind(some * MEANS % LANES)
    sums = [[vector_sum() for _ in range(2)] for _ in range(MEANS)]
    with loop((context.count + 1) // 2) as pair:
        prefetch(rows[context.coming[2 * pair + some % 2], column], LATER)
        values = together(rows, [T.bind(places[2 * pair + i]) for i in range(2)], column)
        for i, halves in enumerate(sums):
            weight = T.bind(T.broadcast(weights[block, pair, lane + i], LANES))
            for total, value in zip(halves, values, strict=True):
                store(total, dot(total[at(0)], value, weight), at(0))
    return sums


def together(rows: Buffer, places: list[Expr], column: Expr) -> list[Expr]:
    """Emit the pairs of two rows' elements in 32 columns, half of them in each vector (`from_pairs`).

    The instruction that interleaves 16-bit words does it in each quarter of its operands.
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
