"""Where NVIDIA's tools are: in CUDA_HOME, on the path, or in packages that pip installs."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from pathlib import Path

HOMES = ("CUDA_HOME", "CUDA_PATH")
"""Variables that name the folder of a CUDA toolkit, on Linux and on Windows."""

WHEELS = "cu*"
"""Folders of NVIDIA's packages, such as nvidia/cu13, each of which is laid out as a toolkit."""


def find_tool(name: str) -> Path | None:
    """The program `name`, such as nvcc: of CUDA_HOME, else on the path, else of the newest of the packages."""
    homes = [Path(os.environ[home]) / "bin" for home in HOMES if os.environ.get(home)]
    paths = [str(folder) for folder in homes] + [None] + [str(folder) for folder in _packages()]
    found = next(filter(None, (shutil.which(name, path=path) for path in paths)), None)
    return Path(found) if found else None


def _packages() -> list[Path]:
    spec = find_spec("nvidia")
    places = spec.submodule_search_locations if spec else None
    return sorted((f / "bin" for place in places or () for f in Path(place).glob(WHEELS)), reverse=True)
