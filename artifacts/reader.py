"""Reading an artifact: everything is checked before any of its code is loaded."""

from __future__ import annotations

import hashlib
import mmap
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deepzig.errors import DeepZigError
from deepzig.tensorfile import TensorEntry, read_header

from .choice import choose
from .cpu_features import this_machine
from .devices import Device
from .machines import Machine
from .manifest import Build, Manifest
from .parts import COPY_AGAIN, MANIFEST, Part, Parts, open_parts
from .writer import ALIGNMENT, STORED

PIECE = re.compile(r"(.*)\[(\d+):(\d+)\]")
"""The name of a piece of a weight: that of the weight, and the part along its first dimension."""

MAX_MANIFEST = 64 << 20
"""Bytes; a manifest of a thousand layers has a few million."""


@dataclass(frozen=True)
class Artifact:
    """A checked artifact.

    Attributes:
        path: the folder or file.
        manifest: its manifest.
        build: its code for this machine.
        device: what the code's kernels run on.
        folder: where its parts lie, all but weights.
        weight_files: the parts that hold weights.
    """

    path: Path
    manifest: Manifest
    build: Build
    device: Device
    folder: Path
    weight_files: tuple[Part, ...]


def open_artifact(
    path: Path, full: bool = False, machine: Machine | None = None, device: Device | None = None
) -> Artifact:  # fmt: skip
    """Check the artifact in the folder `path`, and choose its code for this machine.

    Args:
        path: the folder.
        full: hash the weights too.
        machine: what to choose for, if not the machine of this process.
        device: where it shall run; by default where the artifact can, on a GPU before the CPU.

    Raises:
        DeepZigError: no artifact, another format, ABI, CPU or GPU, or a part that is missing, changed or outside the
            folder.
    """
    parts = open_parts(path)
    manifest = manifest_of(parts)
    _check_abi(manifest, path)
    choice = choose(manifest, machine or this_machine(), path, device)
    check_parts(parts, manifest, full)
    weights = tuple(parts.find(name) for name in sorted(manifest.files) if name.endswith(".safetensors"))
    _check_weights(manifest, weights, path)
    return Artifact(path, manifest, choice.build, choice.device, parts.folder(manifest.files), weights)


def check_parts(parts: Parts, manifest: Manifest, full: bool) -> None:
    """Check that all parts are there and as the manifest says; with `full`, the weights' hashes too.

    Raises:
        DeepZigError: a part is missing, changed or outside of the artifact.
    """
    for name, entry in manifest.files.items():
        part = parts.find(name)
        if part.size != entry.size:
            raise DeepZigError(f"the file has {part.size} bytes, not {entry.size}", part.where, COPY_AGAIN)
        if (full or not name.endswith(".safetensors")) and part.sha256() != entry.sha256:
            raise DeepZigError("the file was changed: its SHA-256 differs from the manifest's", part.where, COPY_AGAIN)
    for name in (part for build in manifest.builds for part in build.parts):
        if name not in manifest.files:
            raise DeepZigError(f"the manifest does not list {name}", f"{parts.path / MANIFEST}", COPY_AGAIN)


def read_manifest(path: Path) -> Manifest:
    """The manifest of the artifact at `path`; nothing else of it is looked at.

    Raises:
        DeepZigError: there is none, or one that can't be believed.
    """
    return manifest_of(open_parts(path))


def manifest_of(parts: Parts) -> Manifest:
    """As `read_manifest`."""
    where = str(parts.path / MANIFEST)
    return Manifest.from_text(manifest_bytes(parts).decode(), where)


def manifest_bytes(parts: Parts) -> bytes:
    """The text of manifest.json, which is UTF-8."""
    where = str(parts.path / MANIFEST)
    part = parts.find(MANIFEST)
    if part.size > MAX_MANIFEST:
        raise DeepZigError("the manifest is too large", where, COPY_AGAIN)
    text = b"".join(part.blocks())
    try:
        text.decode()
    except UnicodeDecodeError:
        raise DeepZigError("the manifest is not UTF-8", where, COPY_AGAIN) from None
    return text


def _check_abi(manifest: Manifest, path: Path) -> None:
    if not any(build.runtime for build in manifest.builds):
        return
    have, want = version("apache-tvm-ffi"), manifest.abi["tvm_ffi"]
    if have != want:
        raise DeepZigError(
            f"the artifact needs apache-tvm-ffi {want}, {have} is installed",
            str(path),
            f"pip install apache-tvm-ffi=={want}, or compile the model again",
        )


def read_part(path: Path, manifest: Manifest, name: str, most: int) -> bytes:
    """The content of a part of the artifact at `path`, of `most` bytes at most.

    Raises:
        DeepZigError: it is missing, too large, outside of the artifact, or not what the manifest says.
    """
    part, entry = open_parts(path).find(name), manifest.files[name]
    if part.size != entry.size:
        raise DeepZigError(f"the file has {part.size} bytes, not {entry.size}", part.where, COPY_AGAIN)
    if part.size > most:
        raise DeepZigError("the file is too large", part.where, COPY_AGAIN)
    try:
        content = b"".join(part.blocks())
    except OSError as error:
        what = f"the file can't be read: {error.strerror}"
        raise DeepZigError(what, part.where, "check its permissions") from None
    if hashlib.sha256(content).hexdigest() != entry.sha256:
        raise DeepZigError("the file was changed: its SHA-256 differs from the manifest's", part.where, COPY_AGAIN)
    return content


def _entries(weights: Iterable[Part]) -> Iterator[tuple[Part, TensorEntry]]:
    for part in weights:
        for entry in read_header(part.file, part.begin, part.size).values():
            if not entry.name.startswith("_pad."):
                yield part, entry


def _check_weights(manifest: Manifest, weights: Iterable[Part], path: Path) -> None:
    """Every weight is there once, aligned, and of the type and shape that the code takes it for."""
    wanted = {spec.name: (STORED[spec.dtype], spec.shape) for spec in manifest.weights}
    seen: set[str] = set()
    entries = list(_entries(weights))
    for part, entry in entries:
        if entry.begin % ALIGNMENT:
            where = f"{part.where}, tensor {entry.name}"
            raise DeepZigError(f"a weight is not aligned to {ALIGNMENT} bytes", where, COPY_AGAIN)
    cut = any(build.plan for build in manifest.builds)
    for part, entry in _joined(entries) if cut else entries:
        where = f"{part.where}, tensor {entry.name}"
        if entry.name in seen:
            raise DeepZigError("a weight is in two files", where, COPY_AGAIN)
        dtype, shape = wanted.get(entry.name, (entry.dtype, entry.shape))
        if (entry.dtype, entry.shape) != (dtype, shape):
            raise DeepZigError(
                f"a weight is {entry.dtype}{list(entry.shape)}, not {dtype}{list(shape)}", where, COPY_AGAIN
            )
        seen.add(entry.name)
    for name in wanted:
        if name not in seen:
            raise DeepZigError("a weight is missing", f"{path}, tensor {name}", COPY_AGAIN)
    for name in seen - wanted.keys():
        raise DeepZigError("a weight is not in the manifest", f"{path}, tensor {name}", COPY_AGAIN)


def _joined(entries: Iterable[tuple[Part, TensorEntry]]) -> Iterator[tuple[Part, TensorEntry]]:
    """Weights that lie in pieces as one, with the shape that all pieces have together."""
    whole: tuple[Part, TensorEntry] | None = None
    for part, entry in entries:
        found = PIECE.fullmatch(entry.name)
        name, begin, end = (found[1], int(found[2]), int(found[3])) if found else (entry.name, 0, 0)
        if whole and begin:
            before = whole[1]
            if (name, begin, entry.dtype, entry.shape[1:]) != (
                before.name, before.shape[0], before.dtype, before.shape[1:]
            ) or entry.shape[0] != end - begin:  # fmt: skip
                what = f"a piece of a weight does not follow that of {before.name} up to {before.shape[0]}"
                raise DeepZigError(what, f"{part.where}, tensor {entry.name}", COPY_AGAIN)
            whole = whole[0], replace(before, shape=(end, *entry.shape[1:]))
            continue
        if whole:
            yield whole
        whole = part, replace(entry, name=name)
    if whole:
        yield whole


def map_weights(artifact: Artifact) -> dict[str, tuple[TensorEntry, npt.NDArray[Any]]]:
    """Every weight as bytes of a private memory map: nothing is read yet, and nothing copied."""
    maps: dict[Path, npt.NDArray[Any]] = {}
    weights = {}
    for part, entry in _entries(artifact.weight_files):
        if part.file not in maps:
            # DLPack takes no read-only arrays; "c" is writable in name, its pages are shared until written
            maps[part.file] = np.memmap(part.file, np.uint8, mode="c")
            _read_ahead(maps[part.file])
        weights[entry.name] = (entry, maps[part.file][entry.begin : entry.end])
    return weights


def _read_ahead(array: npt.NDArray[Any]) -> None:
    base = array.base
    if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_WILLNEED"):
        base.madvise(mmap.MADV_WILLNEED)
