"""64-bit integers in pairs of words against Python's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from deepzig.targets.emit import kernel, store
from deepzig.targets.gpu.emit import launch, subgroup_sum
from deepzig.targets.gpu.wide import Wide, select

from .conftest import GPUS

THREADS = 64


def arithmetic() -> Any:
    """Of each thread's a and b: a + b, a.low * b.low, a >> 24, the lesser, the sum of all a of the subgroup."""
    with kernel("wide") as f:
        a, b = f.tensor("a", "u32", THREADS, 2), f.tensor("b", "u32", THREADS, 2)
        y, total = f.tensor("y", "u32", 5, THREADS, 2), f.tensor("total", "u32", THREADS)
        with launch(THREADS, 1) as t:
            left, right = (Wide.of(x[t.thread, 0], x[t.thread, 1]) for x in (a, b))
            results = [left + right, Wide.product(left.low, right.low), left.shifted(24)]
            results += [select(left < right, left, right), left.summed(32)]
            for i, result in enumerate(results):
                store(y, result.low, i, t.thread, 0)
                store(y, result.high, i, t.thread, 1)
            store(total, subgroup_sum(left.low), t.thread)
    return f.function


@pytest.mark.parametrize("device", GPUS)
def test_arithmetic(gpu: Any, device: str) -> None:
    rng = np.random.default_rng(1)
    a, b = rng.integers(0, 2**64, (2, THREADS), np.uint64)
    b[::4] = a[::4]
    b[1::4] = a[1::4] ^ np.uint64(1)  # the high words are equal
    y, total = np.empty((5, THREADS), np.uint64), np.empty(THREADS, np.uint32)
    words = [x.view(np.uint32).reshape(*x.shape, 2) for x in (a, b, y)]
    gpu(device)(arithmetic())(*words, total)
    low = np.uint64(2**32 - 1)
    sums = np.repeat(a.reshape(2, 32).sum(1), 32)
    assert np.array_equal(y, [a + b, (a & low) * (b & low), a >> np.uint64(24), np.minimum(a, b), sums])
    assert np.array_equal(total, sums.astype(np.uint32))
