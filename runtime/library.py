"""TVM's runtime library: at most one in a process.

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

from .machine import cores

log = logging.getLogger(__name__)

NAME = "tvm_runtime"
"""Without what a platform puts before and after."""


_CODE: dict[Path, str] = {}
"""The code that this process has loaded: path -> SHA-256. Systems know libraries by their paths."""


def load_runtime(artifact: Artifact, threads: int | None) -> None:
    """Make the runtime library available to the artifact's code.

    Args:
        artifact: a checked artifact.
        threads: the number of threads of kernels; None for DEEPZIG_THREADS, else all processors.

    Raises:
        DeepZigError: the process has another build of the library.
    """
    os.environ.setdefault("TVM_NUM_THREADS", str(threads or default_threads()))
    present = _loaded()
    runtime = artifact.build.runtime
    wanted = artifact.manifest.files[runtime].sha256
    if present is None:
        import tvm_ffi  # noqa: F401 - brings the library that the runtime is linked with

        ctypes.CDLL(str(artifact.folder / runtime), ctypes.RTLD_GLOBAL)
        log.info("loaded the runtime library %s", artifact.folder / runtime)
    elif hashlib.sha256(present.read_bytes()).hexdigest() != wanted:
        raise DeepZigError(
            f"another {present.name} is loaded in this process",
            str(present),
            "load the artifact in a process of its own",
        )
    else:
        log.info("the runtime library is that of this process, %s", present)


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


def _loaded() -> Path | None:
    """The runtime library that the process has loaded."""
    images = {"Darwin": _macos_images, "Windows": _windows_images}.get(platform.system(), _linux_images)
    return next((path for path in map(Path, images()) if path.name.partition(".")[0].removeprefix("lib") == NAME), None)


def _linux_images() -> Iterator[str]:
    for line in Path("/proc/self/maps").read_text().splitlines():
        yield line.split(maxsplit=5)[-1]


def _macos_images() -> Iterator[str]:
    process = ctypes.CDLL(None)
    process._dyld_get_image_name.restype = ctypes.c_char_p
    for i in range(process._dyld_image_count()):
        yield (process._dyld_get_image_name(i) or b"").decode()


def _windows_images() -> Iterator[str]:
    kernel = ctypes.windll.kernel32  # type: ignore[attr-defined,unused-ignore]
    kernel.GetModuleHandleW.restype = ctypes.c_void_p
    if handle := kernel.GetModuleHandleW(f"{NAME}.dll"):
        path = ctypes.create_unicode_buffer(32768)
        kernel.GetModuleFileNameW(ctypes.c_void_p(handle), path, len(path))
        yield path.value
