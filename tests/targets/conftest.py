"""Fixtures that compile one CPU kernel and call it on numpy arrays."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tvm

from deepzig.targets.cpu.pipeline import PIPELINE

Array = npt.NDArray[Any]
Run = Callable[..., None]
X86 = {"kind": "llvm", "mtriple": "x86_64-unknown-linux-gnu"}


def aligned(array: Array) -> Array:
    """A copy at a 64-byte boundary: kernels load whole cache lines."""
    raw = np.empty(array.nbytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    copy: Array = raw[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def compile_kernel(kernel: Any, mcpu: str = "x86-64-v3") -> tuple[Any, str]:
    return compile_for(kernel, tvm.target.Target({**X86, "mcpu": mcpu}))


def compile_for(kernel: Any, target: Any) -> tuple[Any, str]:
    """A kernel for a TVM target, and its name. Unlike a model's kernels, this one checks its arguments."""
    name = str(kernel.attrs["global_symbol"])
    return tvm.compile(tvm.IRModule({name: kernel}), target=target, tir_pipeline=PIPELINE), name


def called(function: Any, arrays: Sequence[Array]) -> None:
    """Call a kernel on numpy arrays and write its outputs into them."""
    copies = [aligned(a) for a in arrays]
    function(*(tvm.runtime.from_dlpack(c) for c in copies))
    for array, copy in zip(arrays, copies, strict=True):
        array[...] = copy


def loops(text: str) -> list[str]:
    """Basic blocks that jump to their own start, as far as that jump."""
    parts = re.split(r"^(?=\.LBB)", text, flags=re.M)
    ends = (re.search(rf"\sj\w+\s+{re.escape(part.split(':')[0])}\s", part) for part in parts)
    return [part[: end.start()] for part, end in zip(parts, ends, strict=True) if end]


@pytest.fixture
def build() -> Callable[..., Run]:
    """Kernel, and CPU level -> function on numpy arrays, which writes the kernel's outputs into them."""

    def make(kernel: Any, mcpu: str = "x86-64-v3") -> Run:
        executable, name = compile_kernel(kernel, mcpu)
        function = executable[name]

        return lambda *arrays: called(function, arrays)

    return make


@pytest.fixture
def random_weight() -> Callable[[np.random.Generator, tuple[int, ...], str], tuple[Array, Array]]:
    """(rng, shape, wdtype) -> a weight as stored, and its exact value in float64."""

    def make(rng: np.random.Generator, shape: tuple[int, ...], wdtype: str) -> tuple[Any, Any]:
        weight = rng.standard_normal(shape, np.float32) / np.float32(np.sqrt(shape[-1]))
        if wdtype == "f32":
            return weight, weight.astype(np.float64)
        if wdtype == "f16":
            half = weight.astype(np.float16)
            return half, half.astype(np.float64)
        bits = (weight.view(np.uint32) >> 16).astype(np.uint16)
        return bits, (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)

    return make


@pytest.fixture
def assembly() -> Callable[[Any, str], str]:
    """The kernel's assembly for an x86 CPU level."""
    return lambda kernel, mcpu: str(compile_kernel(kernel, mcpu)[0].mod.inspect_source("asm"))


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Set the number of threads of TVM's pool; the test's end restores it."""
    configure = tvm.get_global_func("runtime.config_threadpool")
    yield lambda count: configure(1, count)
    configure(1, 2)
