"""A module compiled for a target: it computes, and its entry points check what its kernels don't."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax, tirx

from deepzig.targets.cpu.features import CpuTarget
from deepzig.targets.cpu.norm import rms_norm

from .conftest import aligned
from .latents import error

HIDDEN = 37
X, W = np.random.default_rng(1).normal(size=(5, HIDDEN)), np.random.default_rng(2).normal(size=HIDDEN)


@pytest.fixture(scope="module")
def entry() -> Any:
    """Entry point (x f32[n, HIDDEN], w f32[HIDDEN]) -> rms_norm(x) * w."""
    builder = relax.BlockBuilder()
    kernel = builder.add_func(rms_norm(HIDDEN, 1e-5), "rms_norm")
    n = tirx.Var("n", "int64")
    rows = relax.TensorType((n, HIDDEN), "float32")
    x, w = relax.Var("x", rows), relax.Var("w", relax.TensorType((HIDDEN,), "float32"))
    with builder.function("entry", [x, w]):
        with builder.dataflow():
            y = builder.emit_output(relax.call_tir(kernel, relax.Tuple([x, w]), rows))
        builder.emit_func_output(y)
    executable = CpuTarget(frozenset()).compile(builder.finalize())
    return relax.VirtualMachine(executable, tvm.cpu())["entry"]


def call(entry: Any, *arrays: Any) -> Any:
    return entry(*(tvm.runtime.from_dlpack(aligned(a)) for a in arrays)).numpy()


def test_the_baseline_computes(entry: Any) -> None:
    got = call(entry, X.astype(np.float32), W.astype(np.float32))
    assert error(got, X / np.sqrt((X**2).mean(-1, keepdims=True) + 1e-5) * W) < 3e-7


@pytest.mark.parametrize(
    ("x", "w", "message"),
    [
        (X[:, 1:].astype(np.float32), W.astype(np.float32), "shape"),
        (X.astype(np.float32), W[:-1].astype(np.float32), "shape"),
        (X, W.astype(np.float32), "expect Tensor with dtype float32 but get float64"),
        (X[0].astype(np.float32), W.astype(np.float32), "expect Tensor with ndim 2 but get 1"),
    ],
    ids=["columns", "weight", "dtype", "rank"],
)
def test_entry_points_check_their_arguments(entry: Any, x: Any, w: Any, message: str) -> None:
    with pytest.raises((RuntimeError, ValueError), match=message):
        call(entry, x, w)
