"""TVM's runtime library and its parts for devices: at most one of each in a process.

A second copy, or `import tvm` beside a bundled one, aborts the process in its static registry. So a library that is
already there is used if it is the same build, and anything else is refused.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
from collections.abc import Iterator
from pathlib import Path

from deepzig.artifacts.reader import Artifact
from deepzig.errors import DeepZigError

from .cudart import NEEDED_BY, load_cudart
from .machine import cores

log = logging.getLogger(__name__)

_CODE: dict[Path, str] = {}
"""The code that this process has loaded: path -> SHA-256. Systems know libraries by their paths."""


def load_runtime(artifact: Artifact, threads: int | None) -> None:
    """Make the runtime library, and its parts for the artifact's device, available to the artifact's code.

    Args:
        artifact: a checked artifact.
        threads: the number of threads of kernels; None for DEEPZIG_THREADS, else all processors.

    Raises:
        DeepZigError: the process has another build of one of them, or one can't be loaded.
    """
    os.environ.setdefault("TVM_NUM_THREADS", str(threads or default_threads()))
    # Bound to a processor, a thread would share it with whoever is there, the dispatcher among them, for up to 0.1 s.
    os.environ.setdefault("TVM_BIND_THREADS", "0")
    for part in filter(None, (artifact.build.runtime, *artifact.build.libraries)):
        _load(artifact, part)


def _load(artifact: Artifact, part: str) -> None:
    path = artifact.folder / part
    present = _loaded(_name(path))
    if present is None:
        import tvm_ffi  # noqa: F401 - brings the library that the runtime is linked with

        _open(path)
        log.info("loaded the runtime library %s", path)
    elif hashlib.sha256(present.read_bytes()).hexdigest() != artifact.manifest.files[part].sha256:
        raise DeepZigError(
            f"another {present.name} is loaded in this process",
            str(present),
            "load the artifact in a process of its own",
        )
    else:
        log.info("the runtime library is that of this process, %s", present)


def _open(path: Path) -> None:
    try:
        try:
            ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)
        except OSError:
            if _name(path) != NEEDED_BY:
                raise
            load_cudart()
            ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)
    except OSError as error:
        hint = "update the system and its drivers, or compile the model for another device"
        raise DeepZigError(f"a library can't be loaded: {error}", str(path), hint) from None


def _name(path: Path) -> str:
    """A library's name without what a platform puts before and after."""
    return path.name.partition(".")[0].removeprefix("lib")


def code_path(artifact: Artifact) -> Path:
    """Where the artifact's code can be loaded from.

    Raises:
        DeepZigError: the process has loaded other code from there, which the system would give it again.
    """
    path = artifact.folder / artifact.build.code
    sha256 = artifact.manifest.files[artifact.build.code].sha256
    if _CODE.setdefault(path.resolve(), sha256) != sha256:
        hint = "load the new artifact in a new process, or from another folder"
        raise DeepZigError("the artifact was replaced since this process loaded it", str(artifact.path), hint)
    return path


def default_threads() -> int:
    """DEEPZIG_THREADS, or the processors that this process may use."""
    given = os.environ.get("DEEPZIG_THREADS", "")
    if given.isdigit() and int(given):
        return int(given)
    return cores()


def _loaded(name: str) -> Path | None:
    """The library of that name that the process has loaded."""
    if platform.system() == "Windows":
        return _windows_image(name)
    images = _macos_images() if platform.system() == "Darwin" else _linux_images()
    return next((path for path in map(Path, images) if _name(path) == name), None)


def _linux_images() -> Iterator[str]:
    for line in Path("/proc/self/maps").read_text().splitlines():
        yield line.split(maxsplit=5)[-1]


def _macos_images() -> Iterator[str]:
    process = ctypes.CDLL(None)
    process._dyld_get_image_name.restype = ctypes.c_char_p
    for i in range(process._dyld_image_count()):
        yield (process._dyld_get_image_name(i) or b"").decode()


def _windows_image(name: str) -> Path | None:
    kernel = ctypes.windll.kernel32  # type: ignore[attr-defined,unused-ignore]
    kernel.GetModuleHandleW.restype = ctypes.c_void_p
    handle = kernel.GetModuleHandleW(f"{name}.dll")
    if not handle:
        return None
    path = ctypes.create_unicode_buffer(32768)
    kernel.GetModuleFileNameW(ctypes.c_void_p(handle), path, len(path))
    return Path(path.value)
