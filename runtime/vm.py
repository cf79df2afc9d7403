"""The virtual machine that runs an artifact's entry points.

A VM instance is not thread-safe, and each thread that runs kernels gets a thread pool of its own: so all calls run on
one dispatcher thread, whoever makes them.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import numpy.typing as npt

from deepzig.artifacts.manifest import TensorSpec
from deepzig.artifacts.reader import Artifact, map_weights
from deepzig.errors import DeepZigError

from .library import code_path, default_threads, load_runtime

log = logging.getLogger(__name__)

Array = npt.NDArray[Any]

NUMPY = {"f32": np.float32, "i32": np.int32, "u32": np.uint32, "bf16": np.uint16, "f16": np.uint16, "i8": np.int8}
"""How tensors travel; half-precision floats as bits."""

Observer = Callable[[str, list[Array], bool], None]
"""Called with a kernel's symbol, its tensors (inputs, then outputs), and whether it is yet to run."""

CPU, POOLED = 1, 2
ALIGNMENT = 64
"""Bytes; kernels crash on less."""
SMALL = 4096
"""Bytes of an input up to which it is copied to where the last one of its shape was: that is ready to be passed on."""


def aligned(shape: tuple[int, ...], dtype: Any, zero: bool = False) -> Array:
    """An array whose data starts at a multiple of 64 bytes; zeros cost no memory until they are written."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    raw = (np.zeros if zero else np.empty)(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)


class VirtualMachine:
    """The code of a checked artifact, with its weights and `pages` pages of cache.

    Raises:
        DeepZigError: the code can't be loaded.
    """

    def __init__(self, artifact: Artifact, pages: int, threads: int | None = None) -> None:
        self.artifact = artifact
        self._executor = ThreadPoolExecutor(1, "deepzig")
        self._small: dict[tuple[str, str], tuple[Array, Any]] = {}
        self._specs = {name: entry.inputs for name, entry in artifact.manifest.entry_points.items()}
        try:
            self._run(lambda: self._load(pages, threads))
        except BaseException:
            self._executor.shutdown()
            raise

    def _load(self, pages: int, threads: int | None) -> None:
        load_runtime(self.artifact, threads)
        import tvm_ffi

        self._from_dlpack = tvm_ffi.from_dlpack
        config = tvm_ffi.get_global_func("runtime.config_threadpool")
        config(1, threads or default_threads())
        module = tvm_ffi.load_module(str(code_path(self.artifact)))
        self._vm = module["vm_load_executable"]()
        self._vm["vm_initialization"](CPU, 0, POOLED)
        view = tvm_ffi.get_global_func("runtime.TVMTensorCreateView")
        words = {"F32": "float32", "U32": "uint32", "BF16": "uint16", "F16": "uint16", "I32": "int32"}
        mapped = map_weights(self.artifact)
        weights = {
            name: view(self._from_dlpack(data), tvm_ffi.Shape(entry.shape), tvm_ffi.dtype(words[entry.dtype]), 0)
            for name, (entry, data) in mapped.items()
        }
        caches = {name: self._from_dlpack(cache) for name, cache in self._allocate(pages).items()}
        self._functions = {
            name: (self._vm[name], [caches[s] for s in e.states] + [weights[w] for w in e.weights])
            for name, e in self.artifact.manifest.entry_points.items()
        }
        size = sum(data.nbytes for _, data in mapped.values())
        log.info("mapped %d weights, %.1f MB; the cache holds %d pages", len(mapped), size / 1e6, pages)
        log.info("%d threads; entry points %s", threads or default_threads(), ", ".join(self._functions))

    def _allocate(self, pages: int) -> dict[str, Array]:
        """The caches, zero."""
        manifest = self.artifact.manifest
        try:
            return {
                spec.name: aligned(
                    tuple(pages if isinstance(d, str) else d for d in spec.shape), NUMPY[spec.dtype], zero=True
                )
                for spec in manifest.cache
            }
        except (MemoryError, OverflowError, ValueError):
            raise DeepZigError(
                "the cache does not fit in memory",
                f"cache of {pages * manifest.bounds.page_size} tokens",
                "load the model with fewer cache_tokens",
            ) from None

    def _run(self, work: Callable[[], Any]) -> Any:
        try:
            future = self._executor.submit(work)
        except RuntimeError:
            raise DeepZigError("the model is closed", str(self.artifact.path), "load it again") from None
        try:
            return future.result()
        except (RuntimeError, ValueError, TypeError, AttributeError, OSError) as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            where = f"{self.artifact.path}, {self.artifact.build.code}"
            raise DeepZigError(f"the artifact's code failed: {lines[-1]}", where, "compile the model again") from error

    def call(self, entry: str, inputs: Mapping[str, Array]) -> tuple[Array, ...]:
        """Run an entry point.

        Args:
            entry: its name in the manifest.
            inputs: an array for every input; converted, aligned and made contiguous as needed.

        Returns:
            The outputs; they are the caller's own.

        Raises:
            DeepZigError: the code refused the arguments.
        """

        def work() -> tuple[Array, ...]:
            function, fixed = self._functions[entry]
            arguments = [self._tensor(entry, spec, inputs[spec.name]) for spec in self._specs[entry]]
            return tuple(np.from_dlpack(output) for output in function(*arguments, *fixed))

        result: tuple[Array, ...] = self._run(work)
        return result

    def _tensor(self, entry: str, spec: TensorSpec, value: Array) -> Any:
        if value.nbytes > SMALL:
            return self._from_dlpack(_prepare(value, spec))
        key = entry, spec.name
        if key not in self._small or self._small[key][0].shape != value.shape:
            array = aligned(value.shape, NUMPY[spec.dtype])
            self._small[key] = array, self._from_dlpack(array)
        array, tensor = self._small[key]
        array[...] = value
        return tensor

    @contextmanager
    def watch(self, observer: Observer, tensors: bool = True) -> Iterator[None]:
        """Tell `observer` of every kernel call within, right before and right after it.

        It runs on the dispatcher thread and may write to the tensors it is shown; without `tensors` it is shown none,
        which saves time.
        """
        import tvm_ffi

        kernels = {call.kernel for calls in self.artifact.build.calls.values() for call in calls}

        def instrument(_: Any, name: str, before: Any, result: Any, *args: Any) -> int:
            if name in kernels:
                shown = [np.from_dlpack(a) for a in args if tensors and isinstance(a, tvm_ffi.Tensor)]
                observer(name, shown, bool(before))
            return 0  # go on

        self._run(lambda: self._vm["set_instrument"](tvm_ffi.convert(instrument)))
        try:
            yield
        finally:
            self._run(lambda: self._vm["set_instrument"](None))

    def close(self) -> None:
        """Stop the dispatcher thread and free caches and weights; the instance can't be used any more."""
        with suppress(DeepZigError):
            self._run(self._functions.clear)
        self._executor.shutdown()


def _prepare(array: Array, spec: TensorSpec) -> Array:
    # there and back: numpy takes any stride of a dimension of size 1 for contiguous, TVM does not
    array = np.ascontiguousarray(array, NUMPY[spec.dtype]).reshape(-1).reshape(array.shape)
    if array.ctypes.data % ALIGNMENT == 0 and array.flags.writeable:
        return array
    copy = aligned(array.shape, array.dtype)
    copy[...] = array
    return copy
