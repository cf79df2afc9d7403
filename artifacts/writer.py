"""Writing an artifact: into a folder beside the wanted one, which takes its place when everything is there."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from deepzig.errors import DeepZigError

from .checks import FileEntry
from .consistency import ITEM_BYTES
from .manifest import Manifest
from .parts import MANIFEST, check_name
from .workplace import NEW, SCRATCH, Workplace, clear_leftovers

ALIGNMENT = 64
"""Bytes; kernels crash on less."""

SHARD_BYTES = 2 << 30
PIECE_BYTES = 63 << 20
"""The most bytes of weights in a file that programs such as browsers hash and keep as a whole; with its header it has
less than 64 MiB."""

STORED = {"f32": "F32", "u32": "U32", "i32": "I32", "bf16": "BF16", "f16": "F16", "i8": "I8"}
"""Names of the IR -> names of safetensors."""

COPY_BYTES = 1 << 22


class ArtifactWriter:
    """A context manager; nothing appears at `out` unless `finish` was called.

    Args:
        out: where the artifact shall be.
        force: replace what is there, if it is an artifact.
        shard_bytes: the most bytes of weights in a file, unless one tensor is larger.
        cut: write larger tensors in pieces along their first dimension.

    Raises:
        DeepZigError: `out` is taken, or the disk is full.
    """

    def __init__(
        self, out: Path, force: bool = False, shard_bytes: int = SHARD_BYTES, cut: bool = False
    ) -> None:  # fmt: skip
        self.out = out
        self._force = force
        self._shard_bytes, self._cut = shard_bytes, cut
        self._files: dict[str, FileEntry] = {}
        clear_leftovers(out)
        _check_free(out, force)
        with disk_errors(out):
            self._work = Workplace(out)
        self._folder = self._work.folder / NEW

    @property
    def scratch(self) -> Path:
        """A folder for what is needed on the way; it does not outlive the writer."""
        return self._work.folder / SCRATCH

    def check_room(self, size: int) -> None:
        """Ask the disk for so many bytes, and give them back.

        Raises:
            DeepZigError: it has no room for them.
        """
        path = self.scratch / "room"
        with disk_errors(self.out):
            with path.open("wb") as file:
                for begin in range(0, size, COPY_BYTES):
                    file.write(bytes(min(COPY_BYTES, size - begin)))
            path.unlink()

    def __enter__(self) -> ArtifactWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._work.close()

    def add_file(self, name: str, source: Path | bytes | Iterable[bytes]) -> None:
        """Copy a file, or write bytes, as the part `name`."""
        path = self._folder / check_name(name, str(self.out))
        with disk_errors(self.out):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as target:
                part = _Part(target)
                for block in _blocks(source):
                    part.write(block)
                self._files[name] = part.entry()

    def weights(self) -> WeightWriter:
        """The writer of the weight files."""
        return WeightWriter(self._folder, self.out, self._files, self._shard_bytes, self._cut)

    def finish(self, manifest: Manifest) -> None:
        """Write the manifest, with sizes and hashes of all parts, and move the artifact to its place."""
        self.publish(replace(manifest, files=dict(self._files)).to_json().encode())

    def publish(self, manifest: bytes) -> None:
        """As `finish`, with the text of a manifest."""
        with disk_errors(self.out):
            with (self._folder / MANIFEST).open("wb") as file:
                file.write(manifest)
                file.flush()
                _sync(file.fileno())
            self._folder.chmod(0o755)
            _check_free(self.out, self._force)  # compiling took a while
            self._work.publish()


@dataclass(frozen=True)
class _Tensor:
    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * ITEM_BYTES[self.dtype]


class WeightWriter:
    """Weight files, streamed: first `declare` every tensor, then `write` each in the same order."""

    def __init__(
        self, folder: Path, out: Path, files: dict[str, FileEntry], shard_bytes: int, cut: bool
    ) -> None:  # fmt: skip
        self._folder, self._out, self._files, self._shard_bytes, self._cut = folder, out, files, shard_bytes, cut
        self._shards: list[list[_Tensor]] = []
        self._queue: list[tuple[str, list[tuple[str, _Tensor]]]] = []
        self._open: tuple[str, BinaryIO, _Part] | None = None

    def __enter__(self) -> WeightWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            if self._queue:
                raise ValueError(f"{self._queue[0][0]} was declared and not written")
            with disk_errors(self._out):
                self._close()
        elif self._open is not None:
            with suppress(OSError):
                self._open[1].close()

    def declare(self, name: str, dtype: str, shape: tuple[int, ...]) -> None:
        """Announce a tensor."""
        tensor = _Tensor(name, dtype, shape)
        pieces = list(_pieces(tensor, self._shard_bytes)) if self._cut and tensor.size > self._shard_bytes else [tensor]
        self._queue.append((name, [(self._place(piece), piece) for piece in pieces]))

    def _place(self, tensor: _Tensor) -> str:
        """The file that a tensor will be in."""
        if not self._shards or sum(_aligned(t.size) for t in self._shards[-1]) + tensor.size > self._shard_bytes:
            self._shards.append([])
        self._shards[-1].append(tensor)
        return f"weights-{len(self._shards):05}.safetensors"

    def write(self, name: str, chunks: Iterable[npt.NDArray[Any]]) -> None:
        """Write the next declared tensor from consecutive arrays.

        Raises:
            ValueError: out of order, or not as many bytes as declared.
            DeepZigError: the disk is full.
        """
        declared, pieces = self._queue.pop(0)
        if declared != name:
            raise ValueError(f"{declared} is next, not {name}")
        left = [piece.size for _, piece in pieces]
        written, number = 0, 0
        with disk_errors(self._out):
            for chunk in chunks:
                block = np.ascontiguousarray(chunk).reshape(-1).view(np.uint8).data
                written += len(block)
                while block and number < len(pieces):
                    some = block[: left[number]]
                    part = self._part(pieces[number][0])
                    part.write(some)
                    block = block[len(some) :]
                    left[number] -= len(some)
                    if not left[number]:
                        part.write(bytes(-pieces[number][1].size % ALIGNMENT))
                        number += 1
        if written != (size := sum(piece.size for _, piece in pieces)):
            raise ValueError(f"{name} has {size} bytes, {written} were written")

    def _part(self, shard: str) -> _Part:
        """The file to write to, which is begun if it is the next."""
        if self._open is None or self._open[0] != shard:
            self._start(shard)
        assert self._open is not None
        return self._open[2]

    def _start(self, shard: str) -> None:
        self._close()
        file = (self._folder / shard).open("wb")
        self._open = (shard, file, _Part(file))
        number = int(shard[len("weights-") :].split(".")[0])
        self._open[2].write(_header(self._shards[number - 1]))

    def _close(self) -> None:
        if self._open is not None:
            shard, file, part = self._open
            self._files[shard] = part.entry()
            file.close()
            self._open = None


def _pieces(tensor: _Tensor, most: int) -> Iterator[_Tensor]:
    """Consecutive parts along the first dimension, of `most` bytes unless a single index has more."""
    count, *rest = tensor.shape
    step = max(most // (tensor.size // count), 1)
    for begin in range(0, count, step):
        end = min(begin + step, count)
        yield _Tensor(f"{tensor.name}[{begin}:{end}]", tensor.dtype, (end - begin, *rest))


def _header(tensors: list[_Tensor]) -> bytes:
    """A safetensors header after which every payload is aligned; gaps are tensors called `_pad.N`."""
    entries: dict[str, Any] = {}
    at = 0
    for tensor in tensors:
        end = at + tensor.size
        entries[tensor.name] = {"dtype": STORED[tensor.dtype], "shape": tensor.shape, "data_offsets": [at, end]}
        at = _aligned(end)
        if at > end:
            entries[f"_pad.{len(entries)}"] = {"dtype": "U8", "shape": [at - end], "data_offsets": [end, at]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


class _Part:
    """A file being written: its bytes are counted and hashed as they go."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._hash, self._size = file, hashlib.sha256(), 0
        self._held = bytearray()

    def write(self, block: bytes | memoryview) -> None:
        self._hash.update(block)
        self._size += len(block)
        rest = memoryview(block)
        # In blocks as large as the cache's largest pages: a file that is cached in small ones is read 5 % more slowly.
        while rest:
            room = COPY_BYTES - len(self._held)
            self._held += rest[:room]
            rest = rest[room:]
            if len(self._held) == COPY_BYTES:
                self._write_held()

    def _write_held(self) -> None:
        self._file.write(self._held)
        self._held.clear()

    def entry(self) -> FileEntry:
        """Size and hash, once the bytes are on the disk."""
        self._write_held()
        self._file.flush()
        _sync(self._file.fileno())
        return FileEntry(self._size, self._hash.hexdigest())


@contextmanager
def disk_errors(out: Path, work: str = "compile", what: str = "artifact") -> Iterator[None]:
    """Errors of the file system, met while doing some work on what shall be at `out`, as DeepZig's."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
        hint = f"make room and {work} again" if full else "check the path and its permissions"
        raise DeepZigError(f"the {what} can't be written: {error.strerror}", str(out), hint) from error


def _check_free(out: Path, force: bool) -> None:
    """Refuse a place that holds anything but an empty folder, or an artifact that may be replaced."""
    if out.is_symlink() and not out.exists():
        raise DeepZigError("the output is a broken link", str(out), "choose another folder")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not out.is_dir():
        raise DeepZigError("the output is a file", str(out), "choose another folder")
    artifact = _is_artifact(out)
    if not (artifact and force):
        mend = "or replace it with --force" if artifact else "only an artifact is ever replaced"
        joint = ", " if artifact else "; "
        raise DeepZigError("the output folder is not empty", str(out), f"choose another folder{joint}{mend}")


def _is_artifact(folder: Path) -> bool:
    """Whether the folder has a manifest of ours; other programs have files of that name, too."""
    try:
        data = json.loads((folder / MANIFEST).read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(data, dict) and {"format", "created_by", "files"} <= data.keys()


def _blocks(source: Path | bytes | Iterable[bytes]) -> Iterator[bytes]:
    if isinstance(source, bytes):
        yield source
    elif isinstance(source, Path):
        with source.open("rb") as file:
            while block := file.read(COPY_BYTES):
                yield block
    else:
        yield from source


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _sync(descriptor: int) -> None:
    """Have the bytes on the disk before the rename makes them an artifact."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # not every file system can
            raise
