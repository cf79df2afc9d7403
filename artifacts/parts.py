"""Where the parts of an artifact lie: in a folder, or in one file that `deepzig pack` made."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from deepzig.cache import cache_folder
from deepzig.errors import DeepZigError

from .checks import FileEntry
from .package import read_package

MANIFEST = "manifest.json"
ONNX = ".onnx"
COPY_AGAIN = "copy or compile the artifact again"
BLOCK = 1 << 22


@dataclass(frozen=True)
class Part:
    """`size` bytes of a file from `begin` on; `where` is for errors."""

    file: Path
    begin: int
    size: int
    where: str

    def blocks(self) -> Iterator[bytes]:
        """The bytes, a few at a time."""
        try:
            with self.file.open("rb") as file:
                file.seek(self.begin)
                left = self.size
                while left and (block := file.read(min(BLOCK, left))):
                    left -= len(block)
                    yield block
        except OSError as error:
            what = f"the file can't be read: {error.strerror}"
            raise DeepZigError(what, self.where, "check its permissions") from None

    def sha256(self) -> str:
        """The hash of the bytes."""
        digest = hashlib.sha256()
        for block in self.blocks():
            digest.update(block)
        return digest.hexdigest()


class Parts(Protocol):
    """The parts of one artifact."""

    @property
    def path(self) -> Path:
        """What the user calls the artifact."""
        ...

    def find(self, name: str) -> Part:
        """A part.

        Raises:
            DeepZigError: it is missing, or no plain file within the artifact.
        """
        ...

    def folder(self, files: Mapping[str, FileEntry]) -> Path:
        """Where the parts that are opened by their path lie; all but weights. Checked parts are made there if need be.

        Raises:
            DeepZigError: there is no room.
        """
        ...


def is_onnx(path: Path) -> bool:
    """Whether a path names an ONNX model and no artifact."""
    return path.suffix == ONNX and not path.is_dir()


def open_parts(path: Path) -> Parts:
    """The parts of the artifact at `path`.

    Raises:
        DeepZigError: there is no artifact.
    """
    with suppress(OSError):
        if is_onnx(path) and path.is_file():
            raise DeepZigError("an ONNX model is no artifact", str(path), "use it with deepzig run, chat or verify")
        if path.is_file() and path.name != MANIFEST:
            return _Packed(path)
        if (path / MANIFEST).exists():
            return _Folder(path)
    raise DeepZigError("there is no artifact", str(path), "make one with deepzig-compile")


def check_name(name: str, where: str) -> PurePosixPath:
    """The name of a part as a path.

    Raises:
        DeepZigError: it leads out of the artifact, or there is a plainer name for the same file.
    """
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or set("\\:\0") & set(name) or not pure.parts:
        raise DeepZigError("a part lies outside the artifact", f"{where}, file {name!r}", COPY_AGAIN)
    if str(pure) != name or not name.isprintable():
        raise DeepZigError("the name of a part is not a plain path", f"{where}, file {name!r}", COPY_AGAIN)
    return pure


@dataclass(frozen=True)
class _Folder:
    path: Path

    def find(self, name: str) -> Part:
        part = self.path
        try:
            for step in check_name(name, str(self.path / MANIFEST)).parts:
                part = part / step
                if part.is_symlink():
                    raise DeepZigError("a part is a symbolic link", str(part), "copy the file itself")
            if part.is_file():
                return Part(part, 0, part.stat().st_size, str(part))
            if part.exists():
                raise DeepZigError("a part is not a plain file", str(part), COPY_AGAIN)
        except OSError as error:
            raise DeepZigError(f"a part can't be found: {error.strerror}", str(part), COPY_AGAIN) from None
        raise DeepZigError("a part is missing", str(part), COPY_AGAIN)

    def folder(self, files: Mapping[str, FileEntry]) -> Path:
        return self.path


class _Packed:
    def __init__(self, path: Path) -> None:
        self.path = path
        self._members = read_package(path)

    def find(self, name: str) -> Part:
        check_name(name, str(self.path))
        if name not in self._members:
            raise DeepZigError("a part is missing", f"{self.path}, {name}", COPY_AGAIN)
        member = self._members[name]
        return Part(self.path, member.begin, member.size, f"{self.path}, {name}")

    def folder(self, files: Mapping[str, FileEntry]) -> Path:
        """A folder in the cache that is named for the parts' hashes, which are looked at whenever it is used."""
        small = {name: entry for name, entry in files.items() if not name.endswith(".safetensors")}
        digest = hashlib.sha256("".join(f"{n}\0{e.sha256}\0" for n, e in sorted(small.items())).encode()).hexdigest()
        folder = cache_folder("packages") / digest[:32]
        for name, entry in small.items():
            part, target = self.find(name), folder / name
            with suppress(OSError):
                if Part(target, 0, target.stat().st_size, "").sha256() == entry.sha256:
                    continue
            _extract(part, target)
        return folder


def _extract(part: Part, target: Path) -> None:
    """Whole or not at all, whoever else does the same."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            whole = Path(scratch) / target.name
            with whole.open("wb") as file:
                file.writelines(part.blocks())
            os.replace(whole, target)
    except OSError as error:
        with suppress(OSError):  # Windows replaces no file that another process has open: then it is there already
            if Part(target, 0, target.stat().st_size, "").sha256() == part.sha256():
                return
        hint = "make room, or name another folder with DEEPZIG_CACHE"
        raise DeepZigError(f"a part can't be unpacked: {error.strerror}", str(target), hint) from None
