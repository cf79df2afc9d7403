"""Rows of a cache of 8 bits: the codes of all columns, then the scales of their groups; see FORMAT.md."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
I8 = npt.NDArray[np.int8]

GROUP = 64
"""Columns that share a scale."""


def encode(values: npt.NDArray[Any]) -> I8:
    """Rows [..., width] of f32, as they are stored [..., bytes]: the largest of a group becomes 127 or -127."""
    width = values.shape[-1]
    groups = -(-width // GROUP)
    padded = np.zeros((*values.shape[:-1], groups, GROUP), np.float32)
    padded.reshape(*values.shape[:-1], -1)[..., :width] = values
    largest = np.abs(padded).max(-1)
    with np.errstate(divide="ignore"):
        inverse = np.where(largest > 0, np.float32(127) / largest, np.float32(0))
    stored = np.zeros((*values.shape[:-1], row_bytes(width)), np.int8)
    codes = np.rint(padded * inverse[..., None]).astype(np.int8)
    stored[..., : groups * GROUP] = codes.reshape(*values.shape[:-1], -1)
    stored[..., groups * GROUP : groups * (GROUP + 4)] = (largest / np.float32(127)).view(np.int8)
    return stored


def decode(stored: I8, width: int) -> F32:
    """The values [..., width] of stored rows."""
    groups = -(-width // GROUP)
    codes = stored[..., : groups * GROUP].astype(np.float32).reshape(*stored.shape[:-1], groups, GROUP)
    scales = np.ascontiguousarray(stored[..., groups * GROUP : groups * (GROUP + 4)]).view(np.float32)
    values: F32 = (codes * scales[..., None]).reshape(*stored.shape[:-1], -1)[..., :width]
    return values


def row_bytes(width: int) -> int:
    """Bytes of a row, a multiple of 64."""
    return -(-(-(-width // GROUP) * (GROUP + 4)) // 64) * 64
