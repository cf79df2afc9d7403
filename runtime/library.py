"""TVM's runtime library: at most one in a process.

A second copy, or `import tvm` beside a bundled one, aborts the process in its static registry. So a library that is
already there is used if it is the same build, and anything else is refused.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import sys
from pathlib import Path

from deepzig.artifacts.reader import Artifact
from deepzig.errors import DeepZigError

NAME = "libtvm_runtime"


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

        ctypes.CDLL(str(artifact.path / runtime), ctypes.RTLD_GLOBAL)
    elif hashlib.sha256(present.read_bytes()).hexdigest() != wanted:
        raise DeepZigError(
            f"another {NAME} is loaded in this process", str(present), "load the artifact in a process of its own"
        )


def default_threads() -> int:
    """DEEPZIG_THREADS, or the processors that this process may use."""
    given = os.environ.get("DEEPZIG_THREADS", "")
    if given.isdigit() and int(given):
        return int(given)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _loaded() -> Path | None:
    """The runtime library that the process has mapped."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        tvm = sys.modules.get("tvm")
        return next(Path(str(tvm.__file__)).parent.glob(f"lib/{NAME}.*"), None) if tvm else None
    names = (line.split(maxsplit=5)[-1] for line in lines if NAME in line)
    return next((Path(name) for name in names if Path(name).name.startswith(f"{NAME}.")), None)
