"""Artifacts for WebAssembly, run by node in a process of its own that speaks JSON lines (web/src/serve.js)."""

from __future__ import annotations

import base64
import json
import logging
import shutil
import subprocess
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deepzig.artifacts.reader import Artifact
from deepzig.errors import DeepZigError
from deepzig.web import SERVE

from .executor import LESS_CACHE, Observer
from .tensors import NUMPY, Array, DeviceTensor, Shape, Tensor

log = logging.getLogger(__name__)

NODE = "node"
LEAST = 18
"""The first version of node that has all that is used."""


@dataclass(eq=False)
class _Handle:
    """A tensor in node's process, by the number that it has there; or the first rows of a whole one, which it keeps."""

    number: int
    shape: Shape
    dtype: str
    whole: _Handle | None = None


class NodeMachine:
    """The code of a checked artifact, with its weights and `pages` pages of cache, in a process of node.

    Safe to use from several threads.

    Raises:
        DeepZigError: there is no node, or it can't load the artifact.
    """

    def __init__(self, artifact: Artifact, pages: int, threads: int | None = None) -> None:
        if threads is not None and threads > 1:
            what = f"code for WebAssembly runs on one thread, not on {threads}"
            raise DeepZigError(what, str(artifact.path), "leave the number of threads out")
        self.artifact = artifact
        self._specs = {name: entry.inputs for name, entry in artifact.manifest.entry_points.items()}
        self._lock = threading.RLock()
        self._free: list[int] = []
        self._number = 0
        self._observer: Observer | None = None
        self._tensors = True
        self._process = subprocess.Popen(
            [_find_node(artifact.path), str(SERVE)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        names = sorted(name for name in artifact.manifest.files if name.endswith(".safetensors"))
        places = {
            name: {"file": str(part.file), "begin": part.begin, "size": part.size}
            for name, part in zip(names, artifact.weight_files, strict=True)
        }
        try:
            checked = {"name": str(artifact.path), "manifest": artifact.manifest.to_json()}
            self._ask("load", **checked, folder=str(artifact.folder), places=places, pages=pages)
        except BaseException:
            self.close()
            raise
        log.info("node runs %s; the cache holds %d pages", artifact.path, pages)

    def call(self, entry: str, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Run an entry point.

        Args:
            entry: its name in the manifest.
            inputs: an array for every input, or an output of a call.

        Returns:
            The outputs, which stay in node's memory until they are copied.

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
        """Kernels are done when calls return."""

    @contextmanager
    def watch(self, observer: Observer, tensors: bool = True) -> Iterator[None]:
        """Tell `observer` of every kernel call within, as `VirtualMachine.watch` does."""
        with self._lock:
            self._observer, self._tensors = observer, tensors
            try:
                yield
            finally:
                self._observer = None

    def close(self) -> None:
        """End the process."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert stream is not None
            with suppress(BrokenPipeError):
                stream.close()

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
            line = json.dumps({"number": self._number, "do": what, "free": free, **request}).encode() + b"\n"
            stdin, stdout = self._process.stdin, self._process.stdout
            assert stdin is not None and stdout is not None
            try:
                stdin.write(line)
                stdin.flush()
                answer: dict[str, Any] = {"number": 0}
                while answer["number"] != self._number:
                    answer = json.loads(stdout.readline())
            except (OSError, ValueError) as error:  # the pipe is broken or closed, or nothing came
                raise self._ended() from error
        if refused := answer.get("error"):
            where = f"{self.artifact.path}, {self.artifact.build.code}"
            where, hint = refused.get("where", where), refused.get("hint", "compile the model again")
            raise DeepZigError(refused["what"], where, hint)
        return answer["result"]

    def _ended(self) -> DeepZigError:
        errors = self._process.stderr
        assert errors is not None
        if errors.closed:
            return DeepZigError("the model is closed", str(self.artifact.path), "load it again")
        self._process.wait()
        lines = [line for line in errors.read().decode(errors="replace").splitlines() if "rror" in line]
        why = lines[0].strip() if lines else f"exit status {self._process.returncode}"
        return DeepZigError(f"node ended: {why}", str(self.artifact.path), LESS_CACHE)


def _find_node(where: Path) -> str:
    """The program node.

    Raises:
        DeepZigError: there is none, or it is too old.
    """
    found = shutil.which(NODE)
    hint = f"install Node.js {LEAST} or later, or compile the model for this machine"
    if found is None:
        raise DeepZigError("the artifact is for WebAssembly, and there is no node to run it", str(where), hint)
    version = subprocess.run([found, "--version"], capture_output=True, text=True, check=False).stdout.strip()
    major = version.removeprefix("v").partition(".")[0]
    if not major.isdigit() or int(major) < LEAST:
        raise DeepZigError(f"the artifact is for WebAssembly, and node {version} is too old", str(where), hint)
    return found


def _given(value: Tensor, dtype: Any) -> dict[str, Any]:
    """An input as node is told of it."""
    if isinstance(value, DeviceTensor):
        return {"tensor": value.tensor.number, "shape": value.shape}
    array = np.ascontiguousarray(value, dtype)
    return {"data": base64.b64encode(array.tobytes()).decode(), "shape": array.shape}
