"""The virtual machine that runs an artifact's entry points.

A VM instance is not thread-safe, and each thread that runs kernels gets a thread pool of its own: so all calls run on
one dispatcher thread, whoever makes them.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

from deepzig.artifacts.reader import Artifact, map_weights
from deepzig.errors import DeepZigError

from .executor import LESS_CACHE, Observer
from .library import code_path, default_threads, load_runtime
from .tensors import Array, Tensor

log = logging.getLogger(__name__)

NO_ROOM = "out of memory"
"""What drivers say."""

LESS_WEIGHTS = "choose a device with more memory, or compile the model with --quant"


class VirtualMachine:
    """The code of a checked artifact, with its weights and `pages` pages of cache.

    Raises:
        DeepZigError: the code can't be loaded.
    """

    def __init__(self, artifact: Artifact, pages: int, threads: int | None = None) -> None:
        self.artifact = artifact
        self._executor = ThreadPoolExecutor(1, "deepzig")
        self._watched = False
        self._thread: threading.Thread | None = None
        self._specs = {name: entry.inputs for name, entry in artifact.manifest.entry_points.items()}
        try:
            self._run(lambda: self._load(pages, threads))
        except BaseException:
            self._executor.shutdown()
            raise

    def _load(self, pages: int, threads: int | None) -> None:
        self._thread = threading.current_thread()
        load_runtime(self.artifact, threads)
        import tvm_ffi

        from . import memory
        from .replay import watchable

        device, manifest = self.artifact.device, self.artifact.manifest
        cached = [name for name, entry in manifest.entry_points.items() if entry.states]
        self._memory: memory.Memory = memory.memory_of(device, self._run, cached)
        tvm_ffi.get_global_func("runtime.config_threadpool")(1, threads or default_threads())
        module = tvm_ffi.load_module(str(code_path(self.artifact)))
        with watchable(lambda: self._watched):
            self._vm = module["vm_load_executable"]()
            self._vm["vm_initialization"](*self._memory.placement)
        mapped = map_weights(self.artifact)
        size = sum(data.nbytes for _, data in mapped.values())
        with _room("the weights do not fit", f"{size / 1e9:.1f} GB of weights on the device {device}", LESS_WEIGHTS):
            weights = {name: self._memory.weight(entry, data) for name, (entry, data) in mapped.items()}
        where = f"cache of {pages * manifest.bounds.page_size} tokens"
        with _room("the cache does not fit", where, LESS_CACHE):
            self._caches = {
                spec.name: self._memory.zeros(tuple(pages if isinstance(d, str) else d for d in spec.shape), spec.dtype)
                for spec in manifest.cache
            }
        self._functions = {
            name: (self._vm[name], [self._caches[s] for s in e.states] + [weights[w] for w in e.weights])
            for name, e in manifest.entry_points.items()
        }
        done = "copied" if self._memory.copies else "mapped"
        log.info("%s %d weights, %.1f MB; the cache holds %d pages", done, len(mapped), size / 1e6, pages)
        log.info("%d threads; entry points %s", threads or default_threads(), ", ".join(self._functions))

    def _run(self, work: Callable[[], Any]) -> Any:
        if threading.current_thread() is self._thread:  # an observer
            return work()
        try:
            future = self._executor.submit(work)
        except RuntimeError:
            raise DeepZigError("the model is closed", str(self.artifact.path), "load it again") from None
        try:
            return future.result()
        except (RuntimeError, ValueError, TypeError, AttributeError, OSError, MemoryError) as error:
            if isinstance(error, MemoryError) or NO_ROOM in str(error):
                what = f"the memory of the device {self.artifact.device} is full"
                raise DeepZigError(what, str(self.artifact.path), LESS_CACHE) from error
            lines = str(error).strip().splitlines() or [type(error).__name__]
            where = f"{self.artifact.path}, {self.artifact.build.code}"
            raise DeepZigError(f"the artifact's code failed: {lines[-1]}", where, "compile the model again") from error

    def call(self, entry: str, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Run an entry point.

        Args:
            entry: its name in the manifest.
            inputs: an array for every input, converted, aligned, made contiguous and copied to the device as needed; or
                an output, which may lie there.

        Returns:
            The outputs, where they lie; they are the caller's own.

        Raises:
            DeepZigError: the code refused the arguments.
        """

        def work() -> tuple[Tensor, ...]:
            function, fixed = self._functions[entry]
            put = self._memory.put
            arguments = [put(entry, spec, inputs[spec.name]) for spec in self._specs[entry]]
            return tuple(map(self._memory.take, function(*arguments, *fixed)))

        result: tuple[Tensor, ...] = self._run(work)
        return result

    def copy_pages(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy pages of the cache: from the first to the second of each pair."""

        def work() -> None:
            for cache in self._caches.values():
                for source, target in pairs:
                    self._memory.copy_page(cache, source, target)

        self._run(work)

    def read_page(self, page: int) -> dict[str, Array]:
        """What a page of the cache holds: name of a state -> its bytes, u8 [n]."""
        read = self._memory.read_page
        pages: dict[str, Array] = self._run(lambda: {name: read(cache, page) for name, cache in self._caches.items()})
        return pages

    def write_page(self, page: int, data: Mapping[str, Array]) -> None:
        """Put there what `read_page` gave."""

        def work() -> None:
            for name, cache in self._caches.items():
                self._memory.write_page(cache, page, data[name])

        self._run(work)

    def wait(self) -> None:
        """Return when all kernels that were started are done."""
        self._run(self._memory.wait)

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
                self._memory.wait()
                shown = [self._memory.take(a) for a in args if tensors and isinstance(a, tvm_ffi.Tensor)]
                observer(name, shown, bool(before))
            return 0  # go on

        self._run(lambda: self._vm["set_instrument"](tvm_ffi.convert(instrument)))
        self._watched = True
        try:
            yield
        finally:
            self._watched = False
            self._run(lambda: self._vm["set_instrument"](None))

    def close(self) -> None:
        """Stop the dispatcher thread and free caches and weights; the instance can't be used any more."""
        with suppress(DeepZigError):
            self._run(self._functions.clear)
            self._run(self._caches.clear)
            self._run(self._memory.close)
        self._executor.shutdown()


@contextmanager
def _room(what: str, where: str, hint: str) -> Iterator[None]:
    """What is allocated within may find no room."""
    try:
        yield
    except MemoryError:
        raise DeepZigError(f"{what} in memory", where, hint) from None
