"""Kernels of latent attention: for few rows of a sequence in sections of its positions, for many in tiles of rows.

Sections are counted from position 0, and their size depends on the row's own position only. They are joined in order
of position (Dao et al., Flash-Decoding, 2023).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from deepzig.targets.emit import Buffer, Expr, Kernel, kernel, loop, store, symbols, when

from .attention import Attending, Block, Queries, Sizes
from .cache import as_words, pages
from .device import Gpu
from .emit import Threads, barrier, launch, settled, shared, variable
from .softmax import LOWEST

JOINERS = 128
"""Threads of a block that joins sections."""
PEAK, MASS = 0, 1
"""What follows a line's sums."""
PLACES_BYTES = 64 << 20
"""Memory for the sums of sections; with more of them rows take turns."""


@dataclass(frozen=True)
class Sections:
    """How positions are cut for few rows.

    Attributes:
        least: positions of a section, where the row is not so long that there would be more than `most`.
        most: sections of a row.
        places: sections that there is memory for.
    """

    least: int
    most: int
    places: int

    @classmethod
    def of(cls, blocks: int, elements: int) -> Sections:
        """For a row that has so many blocks of threads in a section, and so many sums."""
        least, most = (256, 64) if blocks > 2 else (128, 128)
        return cls(least, most, max(most, min(1024, PLACES_BYTES // (4 * elements))))

    def size(self, count: Expr) -> Expr:
        """Positions of a section of a row that sees `count` of them."""
        reach = self.least * self.most
        return T.truncdiv(count + (reach - 1), T.int64(reach)) * self.least

    def bound(self, positions: Expr) -> Expr:
        """The most sections of rows that see at most so many positions."""
        return T.min(T.int64(self.most), T.truncdiv(positions + (self.least - 1), T.int64(self.least)))

    def rows(self, bound: Expr) -> Expr:
        """How many rows there is memory for at once."""
        return T.truncdiv(T.int64(self.places), T.max(T.int64(1), bound))


@dataclass(frozen=True)
class _Operands:
    """Parameters that both kernels have."""

    queries: Queries
    cache: Buffer
    seq: Buffer
    pos: Buffer
    table: Buffer

    @classmethod
    def of(cls, f: Kernel, gpu: Gpu, s: Sizes, n: Expr) -> tuple[_Operands, Expr]:
        """The parameters, and how many positions a row of the table has room for."""
        b, p, number = symbols("b p pages")
        queries = Queries(
            f.tensor("absorbed", "f32", n, s.heads, s.latent_pitch),
            f.tensor("q", "f32", n, s.heads * (s.nope + s.rope)),
            f.tensor("angles", "f32", n, s.rope),
        )
        cached = pages(f, number, s.page, s.cdtype, s.width, words=gpu.words_only)
        seq, pos = f.tensor("seq", "i32", n), f.tensor("pos", "i32", n)
        return cls(queries, cached, seq, pos, f.tensor("table", "i32", b, p)), p * s.page

    def count(self, row: Expr) -> Expr:
        """Positions that a row sees."""
        return T.Cast("int64", self.pos[row]) + 1


@cache
def mla_attend(s: Sizes, *, gpu: Gpu, least: int = 1) -> PrimFunc:
    """Kernel of causal attention in latent space for few rows of a sequence.

    A block has one row, some heads, and a section. The sections of fewer rows than `least` are not joined.

    Returns:
        (absorbed f32[n, heads, latent_pitch], q f32[n, heads * (nope + rope)], angles f32[n, rope],
        cache[pages, page, ...], seq i32[n], pos i32[n], table i32[b, p], and what it writes: sums f32[places, lines,
        latent_pitch + 4], latent f32[n, heads, latent_pitch]); `scratch` is the shape of the sums, which mean nothing
        afterwards. After those of a line are its peak and its mass.
    """
    block, cut = few_rows(gpu, s)
    places, lines, width = scratch(gpu, s)
    groups = lines // block.count
    with kernel("mla_attend", gpu.kind, *s.names, *([f"join{least}"] if least > 1 else [])) as f:
        (n,) = symbols("n")
        given, positions = _Operands.of(f, gpu, s, n)
        SUMS = f.tensor("sums", "f32", places, lines, width)
        Y = f.tensor("latent", "f32", n, s.heads, s.latent_pitch)
        cached = as_words(given.cache, s.cdtype)
        bound = cut.bound(positions)
        at_once = cut.rows(bound)
        named = settled if gpu.compact else T.bind  # see `Attending`

        with loop(T.truncdiv(n + (at_once - 1), at_once)) as turn:
            first = turn * at_once
            rows = T.min(at_once, n - first)
            with launch(block.threads, rows, groups, bound) as t:
                row = named(first + t.block[0])
                count = named(given.count(row))
                size = named(cut.size(count))
                begin = named(t.block[2] * size)
                with when(begin < count):
                    head = t.block[1] * block.count
                    work = Attending(block, t, given.queries, lambda r: (row, head + r, head + r < s.heads))
                    end = named(T.min(begin + size, count))
                    work.attend(cached, given.table, T.bind(given.seq[row]), begin, end)
                    place = named(t.block[0] * bound + t.block[2])
                    work.write(lambda r, c, value, mass: store(SUMS, value, place, head + r, c))

                    def keep(r: Expr, peak: Expr, mass: Expr) -> None:
                        store(SUMS, peak, place, head + r, s.latent_pitch + PEAK)
                        store(SUMS, mass, place, head + r, s.latent_pitch + MASS)

                    work.each_line(keep)
            with when(n >= least) if least > 1 else nullcontext(), launch(JOINERS, rows, s.heads) as t:
                row, head = settled(first + t.block[0]), t.block[1]
                place = settled(t.block[0] * bound)
                count = settled(given.count(row))

                def write(c: Expr, value: Expr) -> None:
                    store(Y, value, row, head, c)

                join(t, cut, s, SUMS, count, place, head, write)
    return f.function


def join(
    t: Threads, cut: Sections, s: Sizes, sums: Buffer, count: Expr, place: Expr, head: Expr,
    write: Callable[[Expr, Expr], None],
) -> None:  # fmt: skip
    """Emit write(column, value) for the attended latent of a head, by the threads of a block.

    Args:
        t: the threads.
        cut: how positions were cut.
        s: the sizes.
        sums: of the sections.
        count: positions that the row sees.
        place: of the row's first section.
        head: which.
        write: emits what becomes of a column.
    """
    size = settled(cut.size(count))
    number = settled(T.truncdiv(count + (size - 1), size))
    share, top, mass = shared(cut.most), variable(T.float32(LOWEST)), variable(T.float32(0))
    with loop(number) as i:
        store(top, T.max(top[0], sums[place + i, head, s.latent_pitch + PEAK]), 0)
    with t.each(cut.most) as i, when(i < number):
        store(share, T.exp(sums[place + i, head, s.latent_pitch + PEAK] - top[0]), i)
    barrier()
    with loop(number) as i:
        store(mass, mass[0] + sums[place + i, head, s.latent_pitch + MASS] * share[i], 0)
    with t.each(s.kv_lora) as c:
        total = variable(T.float32(0))
        with loop(number) as i:
            store(total, total[0] + sums[place + i, head, c] * share[i], 0)
        write(c, total[0] / mass[0])


def few_rows(gpu: Gpu, s: Sizes) -> tuple[Block, Sections]:
    """How blocks attend for few rows, and how positions are cut for them."""
    block = Block.of(gpu, s, s.heads)
    groups = -(-s.heads // block.count)
    return block, Sections.of(groups, groups * block.count * s.latent_pitch)


def scratch(gpu: Gpu, s: Sizes) -> tuple[int, int, int]:
    """Of the sums that `mla_attend` keeps: places, lines, columns."""
    block, cut = few_rows(gpu, s)
    return cut.places, -(-s.heads // block.count) * block.count, s.latent_pitch + 4


@cache
def mla_flash(s: Sizes, *, gpu: Gpu) -> PrimFunc:
    """Kernel of causal attention in latent space for many rows of a sequence.

    A block has lines (row, head) that lie side by side, and all positions that they see. Rows of a sequence are
    consecutive. A block with rows of several sequences attends to one after the other.

    Returns:
        (absorbed f32[n, heads, latent_pitch], q f32[n, heads * (nope + rope)], angles f32[n, rope],
        cache[pages, page, ...], seq i32[n], pos i32[n], table i32[b, p], latent f32[n, heads, latent_pitch]).
    """
    block = Block.of(gpu, s)
    with kernel("mla_flash", gpu.kind, *s.names) as f:
        (n,) = symbols("n")
        given, _ = _Operands.of(f, gpu, s, n)
        Y = f.tensor("latent", "f32", n, s.heads, s.latent_pitch)
        cached = as_words(given.cache, s.cdtype)
        with launch(block.threads, T.truncdiv(n * s.heads + (block.count - 1), T.int64(block.count))) as t:
            first = t.block[0] * block.count

            def line(r: Expr) -> tuple[Expr, Expr, Expr]:
                place = first + r
                return T.truncdiv(place, T.int64(s.heads)), T.truncmod(place, T.int64(s.heads)), place < n * s.heads

            work = Attending(block, t, given.queries, line)
            low = T.bind(line(T.int64(0))[0])
            high = T.bind(T.min(n - 1, line(T.int64(block.count - 1))[0]))
            with loop(high - low + 1) as i:
                row = T.bind(low + i)
                seq = T.bind(given.seq[row])
                # the last row of a sequence in the block sees what all of them see
                with when((row == high) | (given.seq[T.min(row + 1, high)] != seq)):

                    def sees(r: Expr) -> Expr:
                        own = T.bind(T.min(line(r)[0], n - 1))
                        seen = variable(T.int32(0), "int32")
                        with when(given.seq[own] == seq):
                            store(seen, given.pos[own] + 1, 0)
                        return seen[0]

                    work.attend(cached, given.table, seq, T.int64(0), T.bind(given.count(row)), sees)

            def write(r: Expr, c: Expr, value: Expr, mass: Expr) -> None:
                row, head, there = line(r)
                with when(there):
                    store(Y, value / mass, row, head, c)

            work.write(write)
    return f.function
