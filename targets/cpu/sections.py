"""Attention whose contexts are cut into sections, so that one request has work for all cores.

What is here is where contexts are cut, what a section leaves, how rows take turns with the memory for that, and how
sections are joined (Dao et al., Flash-Decoding, 2023). Sections are whole pages, shared out evenly, and are joined in
order of position. Where they begin follows from the row's position alone. So its bits depend neither on other rows, nor
on threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tvm.script import tirx as T

from deepzig.targets.emit import Buffer, Expr, loop, repeat, store

from .emit import EVENLY, parallel, variable, vector_sum, workspace
from .layout import LANES
from .product import accumulate, each_part
from .softmax import MASKED
from .vector import at, exp, fma, splat

SECTION = 256
"""Most positions of a section, unless a page has more."""
JOINED = 4
"""Vectors of columns that are joined together: lines of the cache that lie side by side."""
SECTIONS = 64
"""Sections that there is memory for at least, so that several short rows have work for all cores."""


@dataclass(frozen=True)
class Section:
    """A task: a section of a row's context, for a group of heads.

    Attributes:
        row: the row.
        begin: its first page.
        end: what follows its last page.
        group: which heads.
        place: where it leaves what it finds.
    """

    row: Expr
    begin: Expr
    end: Expr
    group: Expr
    place: Expr


@dataclass(frozen=True)
class Found:
    """What sections leave, f32.

    Attributes:
        sums: [place, head, column]: values, weighted relative to the peak.
        peaks: [place, head]: the largest score.
        masses: [place, head]: the sum of the weights.
    """

    sums: Buffer
    peaks: Buffer
    masses: Buffer


Attend = Callable[[Section, Found], None]
"""Emits a task."""
Write = Callable[[Expr, Expr, Expr, Sequence[Expr]], None]
"""(row, head, number of a unit, its vectors) -> emits the stores of what a head attended to."""


def pages_at_most(page: int) -> int:
    """Of a section, for so many positions a page."""
    return max(SECTION // page, 1)


def by_sections(
    pos: Buffer, most_pages: Expr, page: int, heads: int, groups: int, kept: tuple[int, int], attend: Attend,
    write: Write, unit: int = 1,
) -> None:  # fmt: skip
    """Attention of all rows.

    Args:
        pos: i32[rows]: the last position that a row sees.
        most_pages: no row sees more pages.
        page: positions a page.
        heads: heads of the output.
        groups: groups of heads; each is a task of its own.
        kept: heads of all groups, and columns of each, that sections leave.
        attend: emits a task.
        write: emits the output of a unit of columns.
        unit: vectors that are output together.
    """
    n = pos.shape[0]

    def pages_of(row: Expr) -> Expr:
        return T.Cast("int64", pos[row] // page + 1)

    def needed(pages: Expr) -> Expr:
        return (pages + (pages_at_most(page) - 1)) // pages_at_most(page)

    def sections_of(pages: Expr) -> Expr:
        return T.min((needed(pages) + (EVENLY - 1)) // EVENLY * EVENLY, pages)

    # Rows have as many sections as their contexts ask for: those of row i are numbered from start[i] on. There is
    # room for those of the longest row and some more; rows take turns.
    most = needed(most_pages) + (EVENLY - 1 + SECTIONS)
    start = workspace(n + 2, dtype="int64")
    store(start, T.int64(0), 0)
    with loop(n) as row:
        store(start, start[row] + sections_of(pages_of(row)), row + 1)
    store(start, start[n] + most + 1, n + 1)
    found = Found(workspace(most, *kept), workspace(most, kept[0]), workspace(most, kept[0]))

    def join(row: Expr, place: Expr, head: Expr) -> None:
        """Emit the output of a row and head: the mean of its sections, at `place` and after, by their masses."""
        sections = T.bind(start[row + 1] - start[row])
        share, top, mass = workspace(most), variable(T.float32(MASKED)), variable(T.float32(0))
        with loop(sections) as s:
            store(top, T.max(top[0], found.peaks[place + s, head]), 0)
        with loop(sections) as s:
            fading = T.bind(exp(T.bind(found.peaks[place + s, head] - top[0]), 1))
            store(share, fading, s)
            store(mass, fma(found.masses[place + s, head], fading, mass[0], 1), 0)
        with each_part(kept[1] // LANES // unit, JOINED // unit) as taken:
            joined = [[vector_sum() for _ in range(unit)] for _ in taken]
            with loop(sections) as s:
                for number, totals in zip(taken, joined, strict=True):
                    for i, total in enumerate(totals):
                        column = (number * unit + i) * LANES
                        accumulate([total], [splat(share[s])], found.sums[place + s, head, at(column)])
            for number, totals in zip(taken, joined, strict=True):
                write(row, head, number, [T.bind(total[at(0)] / splat(mass[0])) for total in totals])

    done = variable(T.int64(0), "int64")
    with repeat(done[0] < n):
        # in memory of its own: where TVM makes code of a loop's bounds, it reads again what a name was bound to
        begin = variable(done[0], "int64")
        with repeat(start[done[0] + 1] - start[begin[0]] <= most):
            store(done, done[0] + 1, 0)
        end, before = T.bind(done[0]), T.bind(start[begin[0]])
        with parallel((start[end] - before) * groups) as task:
            place, row = T.bind(task // groups), variable(begin[0], "int64")
            with repeat(start[row[0] + 1] <= before + place):
                store(row, row[0] + 1, 0)
            which = T.bind(row[0])
            number, sections = before + place - start[which], T.bind(start[which + 1] - start[which])
            first, last = (T.bind(T.truncdiv(i * pages_of(which), sections)) for i in (number, number + 1))
            attend(Section(which, first, last, T.bind(task % groups), place), found)
        with parallel((end - begin[0]) * heads) as task:
            row = T.bind(begin[0] + task // heads)
            join(row, T.bind(start[row] - before), T.bind(task % heads))
