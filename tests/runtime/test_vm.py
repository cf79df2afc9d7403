"""What the virtual machine is given."""

from __future__ import annotations

import numpy as np
import pytest

from deepzig.artifacts.manifest import TensorSpec
from deepzig.runtime.vm import ALIGNMENT, _prepare, aligned

ODD = aligned((7, 37), np.float32)
ODD[...] = np.random.default_rng(3).standard_normal(ODD.shape)
STRIDED = np.lib.stride_tricks.as_strided(ODD[0], (1, 37), (0, 4))


@pytest.mark.parametrize("array", [ODD, ODD[0][None], STRIDED, ODD[:1], ODD[1:], ODD[:, ::2], ODD.T])
def test_arrays_are_made_compact_and_aligned(array: np.ndarray) -> None:
    prepared = _prepare(array, TensorSpec("x", "f32", ("n", "m")))
    assert np.array_equal(prepared, array)
    assert prepared.ctypes.data % ALIGNMENT == 0 and prepared.flags.writeable
    assert prepared.strides == np.empty(array.shape, np.float32).strides


def test_what_fits_is_not_copied() -> None:
    assert _prepare(ODD, TensorSpec("x", "f32", (7, 37))).ctypes.data == ODD.ctypes.data
