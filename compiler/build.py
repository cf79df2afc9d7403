"""From a TVM module to a shared library."""

from __future__ import annotations

import shutil
from importlib.metadata import version
from pathlib import Path

import tvm

from deepzig.errors import DeepZigError
from deepzig.targets.base import Target

CODE_SUFFIX = "so"
RUNTIME_LIBRARY = "libtvm_runtime.so"


def build(module: tvm.IRModule, target: Target, out: Path) -> None:
    """Compile the module and link it to `out`.

    Raises:
        DeepZigError: no linker; TVM refused the module.
    """
    if not any(map(shutil.which, ("g++", "clang++", "c++"))):
        raise DeepZigError("there is no linker", "PATH", "install a C++ compiler, such as g++")
    try:
        target.compile(module).export_library(str(out))
    except (RuntimeError, ValueError, TypeError) as error:
        line = (str(error).strip().splitlines() or ["no message"])[-1]
        raise DeepZigError(f"TVM could not build the model: {line}", "lowering", "rerun with --traceback") from error


def runtime_library() -> Path:
    """TVM's runtime library, to be shipped with the artifact."""
    return Path(tvm.__file__).parent / "lib" / RUNTIME_LIBRARY


def versions() -> dict[str, str]:
    """The versions that an artifact is bound to."""
    return {"tvm_ffi": version("apache-tvm-ffi"), "tvm": version("apache-tvm")}
