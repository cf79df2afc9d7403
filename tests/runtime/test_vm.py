"""What the virtual machine is given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from deepzig.artifacts.manifest import TensorSpec
from deepzig.runtime import Model, load
from deepzig.runtime.tensors import ALIGNMENT, aligned, prepared
from deepzig.runtime.vm import VirtualMachine

ODD = aligned((7, 37), np.float32)
ODD[...] = np.random.default_rng(3).standard_normal(ODD.shape)
STRIDED = np.lib.stride_tricks.as_strided(ODD[0], (1, 37), (0, 4))


@pytest.mark.parametrize("array", [ODD, ODD[0][None], STRIDED, ODD[:1], ODD[1:], ODD[:, ::2], ODD.T])
def test_arrays_are_made_compact_and_aligned(array: np.ndarray) -> None:
    got = prepared(array, TensorSpec("x", "f32", ("n", "m")))
    assert np.array_equal(got, array)
    assert got.ctypes.data % ALIGNMENT == 0 and got.flags.writeable
    assert got.strides == np.empty(array.shape, np.float32).strides


def test_what_fits_is_not_copied() -> None:
    assert prepared(ODD, TensorSpec("x", "f32", (7, 37))).ctypes.data == ODD.ctypes.data


@pytest.mark.parametrize("tensors", [True, False])
def test_watching(model: Model, tensors: bool) -> None:
    """Told before and after every kernel of the manifest, in order, and no more when it is over."""
    assert isinstance(model.backend, VirtualMachine)
    told: list[tuple[str, int, bool]] = []

    def step() -> None:
        zero = np.zeros(1, np.int32)
        model.forward(zero + 5, zero, zero, zero[None], zero, entry="decode")

    with model.backend.watch(lambda kernel, shown, before: told.append((kernel, len(shown), before)), tensors):
        step()
    step()
    kernels = [call.kernel for call in model.backend.artifact.build.calls["decode"]]
    assert [(kernel, before) for kernel, _, before in told] == [(k, b) for k in kernels for b in (True, False)]
    assert all((count > 1) == tensors for _, count, _ in told)


def test_what_loading_logs(artifact: Path, model: Model, caplog: pytest.LogCaptureFixture) -> None:
    """The check, the runtime library (that of `model`), weights and cache, threads and entry points."""
    with caplog.at_level("INFO", "deepzig"), load(artifact, threads=2, cache_tokens=100) as loaded:
        manifest, size = loaded.manifest, loaded.manifest.memory["weights_bytes"]
    checked, library, mapped, threads = [record.getMessage() for record in caplog.records]
    assert checked.startswith(f"checked {artifact}, made by deepzig ") and "; chose build " in checked
    assert library.startswith("the runtime library is that of this process, ")
    assert mapped == f"mapped {len(manifest.weights)} weights, {size / 1e6:.1f} MB; the cache holds 7 pages"
    assert threads == f"2 threads; entry points {', '.join(manifest.entry_points)}"
