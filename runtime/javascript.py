"""Artifacts whose code JavaScript runs, in a process of its own that answers requests (web/src/requests.js)."""

from __future__ import annotations

import base64
import json
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from deepzig.artifacts.reader import Artifact
from deepzig.errors import DeepZigError

from .executor import Observer
from .tensors import NUMPY, Array, DeviceTensor, Shape, Tensor


@dataclass(eq=False)
class _Handle:
    """A tensor in the other process, by its number there; or the first rows of a whole one, which it keeps."""

    number: int
    shape: Shape
    dtype: str
    whole: _Handle | None = None


class JavaScriptMachine(ABC):
    """The code of a checked artifact, with its weights and pages of cache, in another process.

    Safe to use from several threads. A class for each kind of process says how requests get there.
    """

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        self._specs = {name: entry.inputs for name, entry in artifact.manifest.entry_points.items()}
        self._lock = threading.RLock()
        self._free: list[int] = []
        self._number = 0
        self._observer: Observer | None = None
        self._tensors = True

    @abstractmethod
    def _send(self, request: bytes) -> None:
        """Send a request.

        Raises:
            DeepZigError: the process has ended.
        """

    @abstractmethod
    def _receive(self) -> dict[str, Any]:
        """Wait for the next answer; raises as `_send`."""

    @abstractmethod
    def close(self) -> None:
        """End the process."""

    def _load(self, pages: int, **more: Any) -> None:
        """Have the artifact loaded with so many pages of cache; ends the process if that fails."""
        told = {"name": str(self.artifact.path), "manifest": self.artifact.manifest.to_json()}
        try:
            self._ask("load", pages=pages, **told, **more)
        except BaseException:
            self.close()
            raise

    def call(self, entry: str, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Run an entry point.

        Args:
            entry: its name in the manifest.
            inputs: an array for every input, or an output of a call.

        Returns:
            The outputs, which stay in the other process until they are copied.

        Raises:
            DeepZigError: an input that does not fit, or the code failed.
        """
        given = {spec.name: _given(inputs[spec.name], NUMPY[spec.dtype]) for spec in self._specs[entry]}
        with self._lock:
            if self._observer is None:
                return self._handles(self._ask("call", entry=entry, inputs=given))
            self._ask("begin", entry=entry, inputs=given)
            for index, call in enumerate(self.artifact.build.calls[entry]):
                told = self._ask("arguments", entry=entry, index=index) if self._tensors else []
                shown = list(self._handles(told))
                self._observer(call.kernel, shown, True)
                self._ask("step", entry=entry, index=index)
                self._observer(call.kernel, shown, False)
            return self._handles(self._ask("end", entry=entry))

    def copy_pages(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy pages of the cache: from the first to the second of each pair."""
        self._ask("copy_pages", pairs=pairs)

    def read_page(self, page: int) -> dict[str, Array]:
        """What a page of the cache holds: name of a state -> its bytes, u8 [n]."""
        found = self._ask("read_page", page=page)
        return {name: np.frombuffer(base64.b64decode(data), np.uint8) for name, data in found.items()}

    def write_page(self, page: int, data: Mapping[str, Array]) -> None:
        """Put there what `read_page` gave."""
        texts = {name: base64.b64encode(value.tobytes()).decode() for name, value in data.items()}
        self._ask("write_page", page=page, data=texts)

    def wait(self) -> None:
        """Kernels are done when calls return: wait for those of other threads."""
        with self._lock:
            return

    @contextmanager
    def watch(self, observer: Observer, tensors: bool = True) -> Iterator[None]:
        """Tell `observer` of every kernel call within, as `VirtualMachine.watch` does."""
        with self._lock:
            self._observer, self._tensors = observer, tensors
            try:
                yield
            finally:
                self._observer = None

    def run(self, work: Callable[[], Any]) -> Any:
        """Do a piece of work on tensors."""
        with self._lock:
            return work()

    def head(self, tensor: _Handle, rows: int) -> DeviceTensor:
        """The first rows of a tensor."""
        return DeviceTensor(self, _Handle(tensor.number, (rows, *tensor.shape[1:]), tensor.dtype, tensor))

    def read(self, tensor: _Handle, array: Array) -> None:
        """Copy a tensor, or its first rows, to a contiguous array."""
        data = base64.b64decode(self._ask("read", tensor=tensor.number))
        array[...] = np.frombuffer(data, array.dtype, array.size).reshape(array.shape)

    def write(self, tensor: _Handle, array: Array) -> None:
        """Copy a contiguous array to a tensor."""
        self._ask("write", tensor=tensor.number, data=base64.b64encode(array.tobytes()).decode())

    def _handles(self, told: list[dict[str, Any]]) -> tuple[Tensor, ...]:
        handles = []
        for one in told:
            handle = _Handle(one["tensor"], tuple(one["shape"]), np.dtype(NUMPY[one["dtype"]]).name)
            weakref.finalize(handle, self._free.append, handle.number)
            handles.append(DeviceTensor(self, handle))
        return tuple(handles)

    def _ask(self, what: str, **request: Any) -> Any:
        """The result of a request. An answer to another one is of a request that was interrupted."""
        with self._lock:
            self._number += 1
            free = [self._free.pop() for _ in range(len(self._free))]  # more may come meanwhile
            self._send(json.dumps({"number": self._number, "do": what, "free": free, **request}).encode())
            answer: dict[str, Any] = {"number": 0}
            while answer["number"] != self._number:
                answer = self._receive()
        if refused := answer.get("error"):
            where = f"{self.artifact.path}, {self.artifact.build.code}"
            where, hint = refused.get("where", where), refused.get("hint", "compile the model again")
            raise DeepZigError(refused["what"], where, hint)
        return answer["result"]


def _given(value: Tensor, dtype: Any) -> dict[str, Any]:
    """An input as the other process is told of it."""
    if isinstance(value, DeviceTensor):
        return {"tensor": value.tensor.number, "shape": value.shape}
    array = np.ascontiguousarray(value, dtype)
    return {"data": base64.b64encode(array.tobytes()).decode(), "shape": array.shape}
