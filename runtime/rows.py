"""The rows of a call, checked: kernels believe what they are given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from deepzig.artifacts.manifest import Manifest
from deepzig.errors import DeepZigError

Array = npt.NDArray[Any]

RANKS = {"tokens": 1, "seq": 1, "pos": 1, "block_table": 2, "out_rows": 1, "route": 3}
"""Input -> how many dimensions it has."""
FEW = 64
"""Numbers that are looked at one by one."""


def checked_rows(manifest: Manifest, pages: int, given: Mapping[str, Any]) -> dict[str, Array]:
    """The inputs of a model's entry point as i32 arrays.

    Args:
        manifest: of the artifact that will be called.
        pages: how many pages the cache has.
        given: the inputs named in RANKS, `route` only where it is forced.

    Raises:
        DeepZigError: a wrong shape or type, ids, positions or pages out of range, or rows in another order than
            kernels expect.
    """
    inputs = {name: _integers(name, value) for name, value in given.items()}
    bounds, rows, batch = manifest.bounds, len(inputs["tokens"]), len(inputs["block_table"])
    if not 0 < rows <= bounds.rows:
        raise DeepZigError(f"{rows} rows do not fit", "tokens", f"give 1 to {bounds.rows} rows")
    if not 0 < batch <= bounds.batch:
        raise DeepZigError(f"{batch} sequences do not fit", "block_table", f"give 1 to {bounds.batch} sequences")
    for name in inputs.keys() & {"seq", "pos", "route"}:
        if len(inputs[name]) != rows:
            raise DeepZigError(f"{name} has {len(inputs[name])} rows, tokens has {rows}", name, "give as many")
    positions = min(bounds.positions, inputs["block_table"].shape[1] * bounds.page_size)
    ends = {
        "tokens": int(manifest.model["vocab_size"]), "seq": batch, "pos": positions, "block_table": pages,
        "out_rows": rows,
    }  # fmt: skip
    for name, end in ends.items():
        check_range(name, inputs[name], end)
    if rows > 1:
        _check_order(inputs["seq"], inputs["pos"])
    return {name: value.astype(np.int32, copy=False) for name, value in inputs.items()}


def check_range(name: str, values: Array, end: int) -> None:
    """Raises DeepZigError if a value is not in 0 to end - 1."""
    # Between two steps kernels read more than caches hold: numpy's way to a minimum takes longer than a few numbers.
    few = values.ravel().tolist() if values.size <= FEW else [values.min(), values.max()]
    if few and (min(few) < 0 or max(few) >= end):
        bad = values[(values < 0) | (values >= end)].ravel()[0]
        raise DeepZigError(f"{name} has {bad}", name, f"use 0 to {end - 1}")


def _check_order(seq: Array, pos: Array) -> None:
    """Raises DeepZigError if rows of a sequence lie apart, or not in ascending position."""
    other = seq[1:] != seq[:-1]
    starts = [int(seq[0]), *seq[1:][other].tolist()]
    if len(set(starts)) < len(starts):
        raise DeepZigError("the rows of a sequence lie apart", "seq", "put them together")
    if np.any((pos[1:] <= pos[:-1]) & ~other):
        raise DeepZigError("the positions of a sequence do not ascend", "pos", "sort its rows by position")


def _integers(name: str, value: Any) -> Array:
    array = np.asarray(value)
    if array.size == 0:
        array = array.astype(np.int32)
    if array.ndim != RANKS[name] or array.dtype.kind not in "iu":
        raise DeepZigError(
            f"{name} is {array.dtype}{list(array.shape)}", name, f"give whole numbers in {RANKS[name]} dimensions"
        )
    return array
