"""The software GPUs run kernels as a GPU does, and find what a GPU would not tell."""

from __future__ import annotations

import numpy as np
import pytest
from tvm.script import tirx as T

from deepzig.targets.emit import kernel, store, symbols
from deepzig.targets.gpu.emit import block_sum, launch, variable

DEVICES = ("cuda", "metal")


def norm(hidden: int):
    with kernel("rms_norm", hidden) as f:
        (n,) = symbols("n")
        x, w, y = f.tensor("x", "f32", n, hidden), f.tensor("w", "f32", hidden), f.tensor("y", "f32", n, hidden)
        with launch(128, n) as t:
            row = t.block[0]
            square = variable(T.float32(0))
            with t.each(hidden) as i:
                store(square, square[0] + x[row, i] * x[row, i], 0)
            total = block_sum(t, square[0])
            scale = T.bind(T.float32(1) / T.sqrt(total / T.float32(hidden) + T.float32(1e-6)))
            with t.each(hidden) as i:
                store(y, x[row, i] * scale * w[i], row, i)
    return f.function


@pytest.mark.parametrize("device", DEVICES)
def test_a_kernel_with_barriers_and_shuffles(gpu, device: str) -> None:
    rng = np.random.default_rng(1)
    x, w = rng.standard_normal((7, 301), np.float32), rng.standard_normal(301, np.float32)
    y = np.empty_like(x)
    gpu(device)(norm(301))(x, w, y)
    expected = x / np.sqrt((x.astype(np.float64) ** 2).mean(-1, keepdims=True) + 1e-6) * w
    np.testing.assert_allclose(y, expected, rtol=2e-6)
