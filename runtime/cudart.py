"""CUDA's runtime library, which TVM's library for CUDA is linked with: it comes with a wheel, or with the system."""

from __future__ import annotations

import ctypes
import logging
import os
import platform
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from deepzig.errors import DeepZigError

log = logging.getLogger(__name__)

NEEDED_BY = "tvm_runtime_cuda"
"""The part of artifacts that is linked with it."""

NAMES = {"Windows": "cudart64_13.dll"}
"""System -> its file, where that is not the one of Linux."""

WHEELS = ("cu13/lib", "cu13/bin/x86_64", "cu13/bin", "cuda_runtime/lib", "cuda_runtime/bin")
"""Where wheels of NVIDIA put it, within the package `nvidia`."""

TOOLKITS = ("lib64", "lib", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib", "bin/x64", "bin")
"""Where toolkits of NVIDIA put it, within CUDA_HOME or CUDA_PATH."""


def load_cudart() -> None:
    """Load it, so that libraries which name it find it; one that the process has already serves as well.

    Raises:
        DeepZigError: it is not there.
    """
    name = NAMES.get(platform.system(), "libcudart.so.13")
    for place in (*map(str, _files(name)), name):
        try:
            ctypes.CDLL(place, ctypes.RTLD_GLOBAL)
        except OSError:
            continue
        log.info("loaded CUDA's runtime library %s", place)
        return
    raise DeepZigError("CUDA's runtime library is not installed", name, "pip install 'deepzig[cuda]'")


def _files(name: str) -> Iterator[Path]:
    """Files of that name, those of wheels first."""
    spec = find_spec("nvidia")
    roots: list[tuple[Path, tuple[str, ...]]]
    roots = [(Path(root), WHEELS) for root in (spec.submodule_search_locations or [] if spec else [])]
    roots += [(Path(os.environ[name]), TOOLKITS) for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    for root, folders in roots:
        yield from (path for folder in folders if (path := root / folder / name).is_file())
