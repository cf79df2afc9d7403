"""Online softmax (Milakov and Gimelshein, 2018) in the registers of the threads that hold the rows of a matrix unit.

A row keeps its largest score so far (peak) and the sum of its weights (mass), both relative to that peak. New scores
first scale what was summed before by the decay e^(old peak - new peak), which is 1 when the peak stays. Before the
first score the peak is `LOWEST`, a number, so that a row may see nothing of a tile: all its weights are then 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import add

from tvm.script import tirx as T

from deepzig.targets.emit import Buffer, Expr, store

from .device import SUBGROUP
from .emit import registers, shuffle_xor
from .units import Map, Unit

LOWEST = -1e30
"""Below every score."""
MASKED = -3e38
"""The score of a position that a row must not see: its weight is 0 even beside `LOWEST`."""


def _places(map_: Map) -> list[list[tuple[int, int]]]:
    """Of each thread the places in its registers."""
    return [[(int(row), int(column)) for row, column in map_(lane)] for lane in range(SUBGROUP)]


@dataclass(frozen=True)
class Lines:
    """Which rows of a matrix unit a thread holds: the same in A and in the sums.

    Attributes:
        unit: the unit.
        rows: which registers of A tell the row of each line.
        of_a: of each register of A the line.
        of_sums: of each register of sums the line.
        masks: lanes that differ by these hold other words of the same rows of A.
    """

    unit: Unit
    rows: tuple[int, ...]
    of_a: tuple[int, ...]
    of_sums: tuple[int, ...]
    masks: tuple[int, ...]

    @classmethod
    def of(cls, unit: Unit) -> Lines:
        """The lines of a unit."""
        a, sums = _places(unit.a), _places(unit.sums)
        first = [row for row, _ in a[0]]
        lines = list(dict.fromkeys(first))
        rows = tuple(map(first.index, lines))
        of_a = tuple(lines.index(row) for row in first)
        of_sums = tuple(lines.index(row) for row, _ in sums[0])
        for lane in range(SUBGROUP):
            held = [a[lane][i][0] for i in rows]
            assert [row for row, _ in a[lane]] == [held[i] for i in of_a]
            assert [row for row, _ in sums[lane]] == [held[i] for i in of_sums]

        def apart(mask: int) -> bool:
            pairs = [(a[lane], a[lane ^ mask]) for lane in range(SUBGROUP)]
            same_rows = all([r for r, _ in x] == [r for r, _ in y] for x, y in pairs)
            return same_rows and all(x != y for x, y in pairs)

        return cls(unit, rows, of_a, of_sums, tuple(mask for mask in (1, 2, 4, 8, 16) if apart(mask)))

    def row(self, lane: Expr, line: int) -> Expr:
        """The row of a line."""
        return self.unit.a(lane)[self.rows[line]][0]

    def fold(self, value: Expr, combine: Callable[[Expr, Expr], Expr]) -> Expr:
        """Combine a value of each thread over all that hold a row: the same bits in all of them."""
        value = T.bind(value)
        for mask in self.masks:
            value = T.bind(combine(value, shuffle_xor(value, mask)))
        return value


class Softmax:
    """The peaks and masses of the lines of several matrices.

    Attributes:
        lines: of the unit.
        peak: f32 registers, matrix * lines + line.
        mass: the same.
    """

    def __init__(self, lines: Lines, matrices: int) -> None:
        """Emit registers with the state before the first score."""
        self.lines = lines
        self.count = len(lines.rows)
        self.peak = registers(matrices * self.count)
        self.mass = registers(matrices * self.count)
        for i in range(int(self.peak.shape[0])):
            store(self.peak, T.float32(LOWEST), i)
            store(self.mass, T.float32(0), i)

    def weigh(self, matrix: int, scores: Buffer, line_of: Sequence[int]) -> list[Expr]:
        """Emit what turns scores into weights.

        Args:
            matrix: whose rows they are.
            scores: f32 registers; MASKED where a row must not look.
            line_of: of each score the line.

        Returns:
            Of each line the decay.
        """
        decays = []
        for line in range(self.count):
            at = matrix * self.count + line
            mine = [i for i, other in enumerate(line_of) if other == line]
            top = scores[mine[0]]
            for i in mine[1:]:
                top = T.max(top, scores[i])
            top = T.bind(T.max(self.peak[at], self.lines.fold(top, T.max)))
            decays.append(T.bind(T.exp(self.peak[at] - top)))
            store(self.peak, top, at)
            total: Expr = T.float32(0)
            for i in mine:
                store(scores, T.exp(scores[i] - top), i)
                total = total + scores[i]
            total = self.lines.fold(total, add)
            store(self.mass, self.mass[at] * decays[line] + total, at)
        return decays
