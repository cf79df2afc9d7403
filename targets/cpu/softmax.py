"""Online softmax (Milakov and Gimelshein, 2018): one block of scores after the other, in order of position.

A row keeps its largest score so far (peak) and the sum of its weights (mass), both relative to that peak. A new block
first scales what was summed before by the decay e^(old peak - new peak), which is 1 when the peak stays.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm.script import tirx as T

from deepzig.targets.emit import Buffer, Expr, loop, store

from .emit import vector_of, vector_sum, workspace
from .layout import LANES
from .vector import at, exp, fma, splat, tree_max, tree_sum

MASKED = float("-inf")
"""Score of a position that a row must not see; the peak before the first block."""


@dataclass(frozen=True)
class Softmax:
    """The peak and mass of some rows.

    Attributes:
        peak: f32[rows].
        mass: f32[rows].
    """

    peak: Buffer
    mass: Buffer

    @classmethod
    def of(cls, rows: int | Expr) -> Softmax:
        """Emit the allocation; each row is to be cleared."""
        return cls(workspace(rows), workspace(rows))

    def clear(self, row: Expr) -> None:
        """Emit the state of a row before the first block."""
        store(self.peak, T.float32(MASKED), row)
        store(self.mass, T.float32(0), row)

    def weigh(
        self, row: Expr, scores: Buffer, line: Expr, width: Expr, decay: Buffer, write: Callable[[Expr, Expr], None]
    ) -> None:
        """Emit what turns scores[line, :width] into weights of a row, and sets decay[line].

        At least one position of the first block must not be masked. The width is a multiple of 16.

        Args:
            row: whose weights they are.
            scores: f32[lines, at least width].
            line: of the scores.
            width: how many positions.
            decay: f32[lines].
            write: (block of 16 positions, its weights, f32x16) -> emits the store.
        """
        peak, mass = vector_of(scores[line, at(0)]), vector_sum()
        with loop(width // LANES, 1) as c:
            store(peak, T.max(peak[at(0)], scores[line, at(c * LANES)]), at(0))
        top = T.bind(T.max(self.peak[row], tree_max(peak[at(0)])))
        fading = T.bind(exp(T.bind(self.peak[row] - top), 1))
        store(decay, fading, line)
        store(self.peak, top, row)
        with loop(width // LANES) as c:
            weight = T.bind(exp(T.bind(scores[line, at(c * LANES)] - splat(top))))
            write(c, weight)
            store(mass, mass[at(0)] + weight, at(0))
        store(self.mass, fma(self.mass[row], fading, tree_sum(mass[at(0)]), 1), row)
