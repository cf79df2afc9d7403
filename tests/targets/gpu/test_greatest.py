"""The order of floats, and the first of the greatest over threads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from deepzig.targets.emit import kernel, store
from deepzig.targets.gpu.emit import launch
from deepzig.targets.gpu.greatest import INFINITE, NEVER, block_first, place, ranked

from .conftest import KINDS

pytestmark = pytest.mark.parametrize("device", KINDS)


def search(threads: int) -> Any:
    """Of x[threads] the places, the ranks, and the greatest rank and its first index."""
    with kernel("greatest", threads) as f:
        x, y = f.tensor("x", "f32", threads), f.tensor("y", "i32", 4, threads)
        with launch(threads, 1) as t:
            rank = ranked(x[t.thread])
            results = [place(x[t.thread]), rank, *block_first(t, rank, t.thread.astype("int32"))]
            for i, result in enumerate(results):
                store(y, result, i, t.thread)
    return f.function


@pytest.mark.parametrize("threads", [32, 96, 1024])
def test_order(gpu: Any, device: str, threads: int) -> None:
    if threads > KINDS[device].max_threads:
        pytest.skip("the device has no such blocks")
    rng = np.random.default_rng(threads)
    x = np.round(rng.normal(size=threads), 1).astype(np.float32)
    x[:8] = np.nan, -np.nan, -np.inf, 0, -0.0, 1e-40, -1e-40, 3e38
    x = rng.permutation(x)
    y = np.empty((4, threads), np.int32)
    gpu(device)(search(threads))(x, y)
    nan = np.isnan(x)
    assert (y[0, nan] > INFINITE).all()
    assert (y[1, nan] == NEVER).all()
    assert np.array_equal(y[0, ~nan], y[1, ~nan])
    numbers, places = x[~nan].astype(np.float64), y[0, ~nan].astype(np.int64)
    assert np.array_equal(np.sign(np.subtract.outer(places, places)), np.sign(_differences(numbers)))
    assert (y[2] == y[1].max()).all()
    assert (y[3] == y[1].argmax()).all()


def _differences(numbers: Any) -> Any:
    with np.errstate(invalid="ignore"):
        return np.nan_to_num(np.subtract.outer(numbers, numbers))
