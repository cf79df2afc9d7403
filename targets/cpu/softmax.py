"""Online softmax (Milakov and Gimelshein, 2018): one block of scores after the other, in order of position.

A row keeps its largest score so far (peak) and the sum of its weights (mass), both relative to that peak. A new block
first scales what was summed before by the decay e^(old peak - new peak), which is 1 when the peak stays.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.script import tirx as T

from .layout import LANES
from .vector import at, dtype, exp, fma, splat

MASKED = float("-inf")
"""Score of a position that a row must not see; the peak before the first block."""


def _tree(x: Any, combine: Callable[[Any, Any], Any]) -> Any:
    lanes = LANES
    while lanes > 2:
        lanes //= 2
        half = dtype("float32", lanes)
        x = T.bind(combine(T.vectorlow(half, x), T.vectorhigh(half, x)))
    return combine(*(T.Shuffle([x], [lane]) for lane in range(2)))


def tree_sum(x: Any) -> Any:
    """The sum of a vector's lanes, halves first: four dependent additions instead of fifteen."""
    return _tree(x, lambda a, b: a + b)


def tree_max(x: Any) -> Any:
    """The greatest of a vector's lanes."""
    return _tree(x, T.max)


@T.inline
def weigh(scores, row, width, peak, mass, state, decay):  # type: ignore[no-untyped-def]
    """Turn scores[row, :width] into weights; update peak[state] and mass[state]; set decay[row].

    At least one position of the first block must not be masked. The width is a multiple of 16.
    """
    lane = T.alloc_buffer((LANES,), "float32", scope="global")
    lane[at(0)] = scores[row, at(0)]
    for c in T.serial(1, width // LANES):
        lane[at(0)] = T.max(lane[at(0)], scores[row, at(c * LANES)])
    top: T.let = T.max(peak[state], tree_max(lane[at(0)]))
    decay[row] = exp(peak[state] - top, 1)
    peak[state] = top
    lane[at(0)] = splat(0.0)
    for c in T.serial(width // LANES):
        scores[row, at(c * LANES)] = exp(scores[row, at(c * LANES)] - splat(top))
        lane[at(0)] = lane[at(0)] + scores[row, at(c * LANES)]
    mass[state] = fma(mass[state], decay[row], tree_sum(lane[at(0)]), 1)
