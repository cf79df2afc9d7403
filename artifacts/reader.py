"""Reading an artifact: everything is checked before any of its code is loaded."""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from deepzig.errors import DeepZigError
from deepzig.tensorfile import TensorEntry, read_header

from .cpu_features import this_machine
from .machines import Machine, fitting
from .manifest import Build, Manifest
from .writer import ALIGNMENT, COPY_BYTES, MANIFEST, STORED

COPY_AGAIN = "copy or compile the artifact again"
MAX_MANIFEST = 64 << 20
"""Bytes; a manifest of a thousand layers has a few million."""


@dataclass(frozen=True)
class Artifact:
    """A checked artifact; `build` is its code for this machine."""

    path: Path
    manifest: Manifest
    build: Build

    @property
    def weight_files(self) -> list[str]:
        """The parts that hold weights."""
        return sorted(name for name in self.manifest.files if name.endswith(".safetensors"))


def open_artifact(path: Path, full: bool = False, machine: Machine | None = None) -> Artifact:
    """Check the artifact in the folder `path`, and choose its code for this machine.

    Args:
        path: the folder.
        full: hash the weights too.
        machine: what to choose for, if not the machine of this process.

    Raises:
        DeepZigError: no artifact, another format, ABI or CPU, or a part that is missing, changed or outside the folder.
    """
    manifest = read_manifest(path)
    _check_abi(manifest, path)
    build = choose_build(manifest, machine or this_machine(), path)
    for name, entry in manifest.files.items():
        part = _inside(path, name)
        if part.stat().st_size != entry.size:
            raise DeepZigError(f"the file has {part.stat().st_size} bytes, not {entry.size}", str(part), COPY_AGAIN)
        if (full or not name.endswith(".safetensors")) and _sha256(part) != entry.sha256:
            raise DeepZigError("the file was changed: its SHA-256 differs from the manifest's", str(part), COPY_AGAIN)
    for name in (part for b in manifest.builds for part in (b.code, b.runtime)):
        if name not in manifest.files:
            raise DeepZigError(f"the manifest does not list {name}", str(path / MANIFEST), COPY_AGAIN)
    artifact = Artifact(path, manifest, build)
    _check_weights(artifact)
    return artifact


def choose_build(manifest: Manifest, machine: Machine, path: Path) -> Build:
    """The code that makes the most of the machine.

    Raises:
        DeepZigError: there is none for its platform, or it lacks a feature that all need.
    """
    kind = fitting(machine) or "native"
    mend = f"deepzig-compile {manifest.model.get('name', 'MODEL')} --target llvm:cpu={kind} -o DIR"
    same = [b for b in manifest.builds if b.platform == machine.platform]
    if not same:
        have = ", ".join(dict.fromkeys(b.platform for b in manifest.builds))
        raise DeepZigError(f"the artifact is for {have}, this machine is {machine.platform}", str(path), mend)
    runnable = [b for b in same if b.features <= machine.features]
    if not runnable:
        nearest = min(same, key=lambda b: len(b.features - machine.features))
        raise DeepZigError(
            f"this CPU lacks {', '.join(sorted(nearest.features - machine.features))}, which the artifact needs",
            str(path),
            mend,
        )
    return max(runnable, key=lambda b: len(b.features))


def read_manifest(path: Path) -> Manifest:
    """The manifest of the artifact in the folder `path`; nothing else of it is looked at.

    Raises:
        DeepZigError: there is none, or one that can't be believed.
    """
    file = path / MANIFEST
    try:
        if file.stat().st_size > MAX_MANIFEST:
            raise DeepZigError("the manifest is too large", str(file), COPY_AGAIN)
        text = file.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise DeepZigError("there is no artifact", str(path), "make one with deepzig-compile") from None
    except OSError as error:
        what = f"the manifest can't be read: {error.strerror}"
        raise DeepZigError(what, str(file), "check its permissions") from None
    except UnicodeDecodeError:
        raise DeepZigError("the manifest is not UTF-8", str(file), COPY_AGAIN) from None
    return Manifest.from_text(text, str(file))


def _check_abi(manifest: Manifest, path: Path) -> None:
    have, want = version("apache-tvm-ffi"), manifest.abi["tvm_ffi"]
    if have != want:
        raise DeepZigError(
            f"the artifact needs apache-tvm-ffi {want}, {have} is installed",
            str(path),
            f"pip install apache-tvm-ffi=={want}, or compile the model again",
        )


def _inside(path: Path, name: str) -> Path:
    """The part `name`, which must be a plain file below `path`."""
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or "\\" in name or not pure.parts:
        raise DeepZigError("a part lies outside the artifact", f"{path / MANIFEST}, file {name}", COPY_AGAIN)
    part = path
    for step in pure.parts:
        part = part / step
        if part.is_symlink():
            raise DeepZigError("a part is a symbolic link", str(part), "copy the file itself")
    if not part.is_file():
        raise DeepZigError("a part is missing", str(part), COPY_AGAIN)
    return part


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(COPY_BYTES):
            digest.update(block)
    return digest.hexdigest()


def read_part(path: Path, manifest: Manifest, name: str, most: int) -> bytes:
    """The content of a part of the artifact in the folder `path`, of `most` bytes at most.

    Raises:
        DeepZigError: it is missing, too large, outside the folder, or not what the manifest says.
    """
    part, entry = _inside(path, name), manifest.files[name]
    if entry.size > most:
        raise DeepZigError("the file is too large", str(part), COPY_AGAIN)
    try:
        with part.open("rb") as file:
            content = file.read(entry.size + 1)
    except OSError as error:
        what = f"the file can't be read: {error.strerror}"
        raise DeepZigError(what, str(part), "check its permissions") from None
    if len(content) != entry.size:
        raise DeepZigError(f"the file has {part.stat().st_size} bytes, not {entry.size}", str(part), COPY_AGAIN)
    if hashlib.sha256(content).hexdigest() != entry.sha256:
        raise DeepZigError("the file was changed: its SHA-256 differs from the manifest's", str(part), COPY_AGAIN)
    return content


def _entries(artifact: Artifact) -> Iterator[tuple[Path, TensorEntry]]:
    for name in artifact.weight_files:
        path = artifact.path / name
        for entry in read_header(path).values():
            if not entry.name.startswith("_pad."):
                yield path, entry


def _check_weights(artifact: Artifact) -> None:
    """Every weight is there once, aligned, and of the type and shape that the code takes it for."""
    wanted = {spec.name: (STORED[spec.dtype], spec.shape) for spec in artifact.manifest.weights}
    seen: set[str] = set()
    for path, entry in _entries(artifact):
        where = f"{path}, tensor {entry.name}"
        if entry.name in seen:
            raise DeepZigError("a weight is in two files", where, COPY_AGAIN)
        if entry.begin % ALIGNMENT:
            raise DeepZigError(f"a weight is not aligned to {ALIGNMENT} bytes", where, COPY_AGAIN)
        dtype, shape = wanted.get(entry.name, (entry.dtype, entry.shape))
        if (entry.dtype, entry.shape) != (dtype, shape):
            raise DeepZigError(
                f"a weight is {entry.dtype}{list(entry.shape)}, not {dtype}{list(shape)}", where, COPY_AGAIN
            )
        seen.add(entry.name)
    for name in wanted:
        if name not in seen:
            raise DeepZigError("a weight is missing", f"{artifact.path}, tensor {name}", COPY_AGAIN)


def map_weights(artifact: Artifact) -> dict[str, tuple[TensorEntry, npt.NDArray[Any]]]:
    """Every weight as bytes of a private memory map: nothing is read yet, and nothing copied."""
    maps: dict[Path, npt.NDArray[Any]] = {}
    weights = {}
    for path, entry in _entries(artifact):
        if path not in maps:
            # DLPack takes no read-only arrays; "c" is writable in name, its pages are shared until written
            maps[path] = np.memmap(path, np.uint8, mode="c")
            _read_ahead(maps[path])
        weights[entry.name] = (entry, maps[path][entry.begin : entry.end])
    return weights


def _read_ahead(array: npt.NDArray[Any]) -> None:
    base = array.base
    if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_WILLNEED"):
        base.madvise(mmap.MADV_WILLNEED)
