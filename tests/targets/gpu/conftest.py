"""Fixtures that compile kernels for a GPU and call them on numpy arrays.

The GPU is software; where there is one of CUDA, with its driver, tests of CUDA run on that: `pytest -m cuda`.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tvm

from deepzig.artifacts import choice
from deepzig.artifacts.devices import Device, Gpu
from deepzig.errors import DeepZigError
from deepzig.targets.gpu.device import CUDA, METAL, WEBGPU, GpuTarget
from deepzig.targets.gpu.pipeline import PIPELINE
from deepzig.targets.gpu.webgpu import compile_functions

from . import made_artifact
from .software import cuda_features, load
from .vulkan import Runner, device

QUICK = (
    "test_rope_angles[64-",
    "test_embed[f16-",
    "test_proj[q4-",
    "test_heads[f16-",
    "test_layer[h101-q8-",
    "test_latent_write[q8-",
    "test_route[sigmoid-e42-",
    "test_rows_do_not_depend_on_their_neighbours[",
    "test_a_mixture_in_shards[1-",
    "test_sections_grow_and_rows_take_turns[",
    "test_product[webgpu-f16",
)
"""Tests of WebGPU that are fast ones."""

Array = npt.NDArray[Any]
Run = Callable[..., None]
GPUS = {gpu.kind: gpu for gpu in (CUDA, METAL)}
KINDS = {gpu.kind: gpu for gpu in (CUDA, METAL, WEBGPU)}
"""With WebGPU, which has no runtime of TVM's: for tests of kernels."""


@dataclass(frozen=True)
class SoftwareGpu:
    """Compiles kernels for a kind of device, which here is software.

    Attributes:
        device: "cuda" or "metal".
        folder: where to put libraries.
    """

    device: str
    folder: Path

    def __call__(self, kernel: Any) -> Run:
        """The kernel as a function of numpy arrays and numbers that writes its outputs into the arrays."""
        [function] = self.all(kernel)
        return function

    def all(self, *kernels: Any) -> list[Run]:
        """Several kernels, compiled together."""
        named = {str(kernel.attrs["global_symbol"]): kernel for kernel in kernels}
        target = GpuTarget(GPUS[self.device], frozenset(), f"{platform.machine()}-linux", self.device)
        compiled = tvm.compile(tvm.IRModule(named), target=target.tvm_target(), tir_pipeline=PIPELINE)
        path = self.folder / f"{len(list(self.folder.iterdir()))}.so"
        compiled.export_library(str(path))
        tvm.get_global_func("deepzig.shim.checked")(True)
        module = tvm.runtime.load_module(str(path))
        functions = [module[name] for name in named]
        tvm.get_global_func("deepzig.shim.checked")(False)
        return [self._runs(function) for function in functions]

    def _runs(self, function: Any) -> Run:
        return lambda *values: called(function, self.device, values)


@dataclass(frozen=True)
class CudaGpu:
    """Compiles kernels for the GPU of this machine, by NVIDIA's compiler.

    Attributes:
        features: what there is to be code for.
        folder: where to put libraries.
    """

    features: frozenset[str]
    folder: Path

    def __call__(self, kernel: Any) -> Run:
        """As of `SoftwareGpu`."""
        [function] = self.all(kernel)
        return function

    def all(self, *kernels: Any) -> list[Run]:
        """As of `SoftwareGpu`."""
        named = {str(kernel.attrs["global_symbol"]): kernel for kernel in kernels}
        target = GpuTarget(CUDA, self.features, f"{platform.machine()}-linux", "cuda")
        path = self.folder / f"{len(list(self.folder.iterdir()))}.so"
        target.compile(tvm.IRModule(named)).export_library(str(path))
        module = tvm.runtime.load_module(str(path))
        return [self._runs(module[name]) for name in named]

    @staticmethod
    def _runs(function: Any) -> Run:
        def run(*values: Any) -> None:
            tensors = [tvm.runtime.tensor(v, tvm.cuda()) if isinstance(v, np.ndarray) else v for v in values]
            function(*tensors)
            for value, tensor in zip(values, tensors, strict=True):
                if isinstance(value, np.ndarray):
                    value[...] = tensor.numpy()

        return run


class VulkanGpu:
    """Compiles kernels for WebGPU, which here is Vulkan in software."""

    def __call__(self, kernel: Any) -> Run:
        """As of `SoftwareGpu`."""
        [function] = self.all(kernel)
        return function

    def all(self, *kernels: Any) -> list[Run]:
        """As of `SoftwareGpu`."""
        device()
        named = {str(kernel.attrs["global_symbol"]): kernel for kernel in kernels}
        target = GpuTarget(WEBGPU, frozenset(), f"{platform.machine()}-linux", "webgpu")
        run = Runner(compile_functions(tvm.IRModule(named), target))
        return [partial(run, name) for name in named]


def called(function: Any, device: str, values: Sequence[Any]) -> None:
    """Call a kernel with numpy arrays and numbers, and write its outputs into the arrays.

    It is called twice, with the threads and blocks in opposite orders.

    Raises:
        AssertionError: it wrote outside of an array, or its results depend on the order.
    """
    results = []
    for reverse in (False, True):
        tensors = [tvm.runtime.tensor(v, tvm.device(device)) if isinstance(v, np.ndarray) else v for v in values]
        tvm.get_global_func("deepzig.shim.reversed")(reverse)
        try:
            function(*tensors)
        finally:
            tvm.get_global_func("deepzig.shim.reversed")(False)
        damage = tvm.get_global_func("deepzig.shim.damage")()
        assert not damage, damage
        results.append([t.numpy() for v, t in zip(values, tensors, strict=True) if isinstance(v, np.ndarray)])
    arrays = [v for v in values if isinstance(v, np.ndarray)]
    for i, (array, one, other) in enumerate(zip(arrays, *results, strict=True)):
        same = one.tobytes() == other.tobytes()
        assert same, f"array {i} of the arguments depends on the order in which threads run: a barrier is missing"
        array[...] = one


@pytest.fixture
def gpu(tmp_path: Path) -> Callable[[str], SoftwareGpu | CudaGpu | VulkanGpu]:
    """Kind of device -> what compiles kernels for it."""

    def make(device: str) -> SoftwareGpu | CudaGpu | VulkanGpu:
        if device == "webgpu":
            return VulkanGpu()
        features = cuda_features()
        if device == "cuda" and features:
            return CudaGpu(features, tmp_path)
        load()
        return SoftwareGpu(device, tmp_path)

    return make


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of the device "cuda" have its mark; those of "webgpu" are slow, but for one of each kind of kernels."""
    for item in items:
        params = getattr(getattr(item, "callspec", None), "params", {})
        devices = {value for value in params.values() if isinstance(value, str)}  # others may be arrays
        if "cuda" in devices:
            item.add_marker(pytest.mark.cuda)
        if "webgpu" in devices and not any(name in item.nodeid for name in QUICK):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="module")
def one_gpu() -> Iterator[None]:
    """A machine with one GPU of CUDA, as far as the reader of artifacts knows."""

    def found(device: Device) -> Gpu:
        if device.index:
            raise DeepZigError("there is one GPU", f"device {device}", "choose cuda:0")
        return Gpu(device, "software", 1 << 34, (8, 6), 2e11)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(choice, "cuda_gpu", found)
        yield


@pytest.fixture(scope="module", params=["cuda", "metal"])
def gpu_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, one_gpu: None) -> Path:
    """A tiny artifact with code for a GPU, on a machine that has it."""
    return made_artifact.write(tmp_path_factory.mktemp("gpu") / request.param, request.param)
