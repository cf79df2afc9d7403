"""From a folder to one file, and back."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path

from deepzig.errors import DeepZigError

from .package import SUFFIX, write_package
from .parts import MANIFEST, open_parts
from .reader import check_parts, manifest_bytes, manifest_of
from .writer import ArtifactWriter, disk_errors


def pack(path: Path, out: Path, force: bool = False) -> None:
    """Write the artifact at `path` to the file `out`, whole or not at all. The same artifact gives the same bytes.

    Args:
        path: the artifact.
        out: the file; its name ends in `.deepzig`.
        force: replace it, if it is there.

    Raises:
        DeepZigError: the artifact is damaged, `out` is taken, or the disk is full.
    """
    if out.suffix != SUFFIX:
        hint = f"call it {out.name}{SUFFIX}"
        raise DeepZigError(f"a packed artifact's name ends in {SUFFIX}", str(out), hint)
    if out.exists() and (out.is_dir() or not force):
        hint = "choose another name" + ("" if out.is_dir() else ", or replace it with --force")
        raise DeepZigError("the output exists", str(out), hint)
    parts = open_parts(path)
    if path.is_file():
        raise DeepZigError("the artifact is packed already", str(path), "copy the file")
    manifest = manifest_of(parts)
    check_parts(parts, manifest, full=True)
    names = sorted(manifest.files, key=lambda name: (name.endswith(".safetensors"), name))
    files = [(name, parts.find(name).file) for name in (MANIFEST, *names)]
    with disk_errors(out, "pack"):
        out.parent.mkdir(parents=True, exist_ok=True)
        file = tempfile.NamedTemporaryFile(prefix=f".{out.name}.", dir=out.parent, delete=False)  # noqa: SIM115
        try:
            with file:
                write_package(file, files)  # type: ignore[arg-type]
                file.flush()
                os.fsync(file.fileno())
            os.chmod(file.name, 0o644)
            os.replace(file.name, out)  # closed by now: Windows moves and removes no open file
        except BaseException:
            with suppress(OSError):
                os.unlink(file.name)
            raise


def unpack(path: Path, out: Path, force: bool = False) -> None:
    """Write the packed artifact `path` to the folder `out`: what was packed, byte for byte.

    Raises:
        DeepZigError: the file is damaged, `out` is taken, or the disk is full.
    """
    parts = open_parts(path)
    if not path.is_file():
        raise DeepZigError("the artifact is a folder already", str(path), "copy it")
    manifest = manifest_of(parts)
    check_parts(parts, manifest, full=True)
    with ArtifactWriter(out, force=force) as writer:
        for name in manifest.files:
            writer.add_file(name, parts.find(name).blocks())
        writer.publish(manifest_bytes(parts))
