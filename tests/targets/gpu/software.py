"""Software GPUs: the shim in `shim/`, which runs the kernels of CUDA and Metal artifacts on the CPU."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from deepzig.artifacts.cuda_driver import cuda_gpu
from deepzig.artifacts.devices import Device
from deepzig.cache import cache_folder
from deepzig.errors import DeepZigError

SHIM = Path(__file__).with_name("shim")
COMPILER = os.environ.get("CXX", "c++")
LIBRARY_OPTIONS = ("-std=c++17", "-fPIC", "-shared")
KERNEL_OPTIONS = (
    *("-Og", "-march=native"),  # small models take longer to compile than to run: -O1 costs half as much again
    *("-fno-strict-aliasing", "-fwrapv"),  # generated code reads floats as integers, and integers of GPUs wrap
    "-ftrivial-auto-var-init=pattern",  # local variables that were never written show
    "-Werror=frame-larger-than=61440",  # the engine gives each thread a stack of 64 KiB
)
CHECKED_OPTIONS = ("-fsanitize=alignment,bounds", *("-nodefaultlibs", "-lm", "-lc", "-lgcc"))
"""The shim has the functions that these checks call: no sanitizer's library is needed."""


@functools.cache
def library() -> Path:
    """The shim as a shared library, compiled if it was not yet.

    It needs libtvm_runtime and libtvm_ffi, which its process must have loaded, and stands in for TVM's runtimes of both
    kinds of devices. Beside it are the headers that it compiles kernels with, and the compiled kernels.
    """
    folder = cache_folder("software-gpu") / _key()
    made = folder / "libdeepzig_software_gpu.so"
    if made.exists():
        return made
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        new = Path(temporary) / "new"
        shutil.copytree(SHIM / "include", new / "include")
        _compile(new / made.name, folder)
        try:
            new.rename(folder)
        except OSError:  # another process was first
            assert made.exists()
    return made


def load() -> None:
    """Make the software GPUs known to this process, which has TVM's runtime library.

    Skips the test where a real GPU has taken their place in TVM: it can't have both.
    """
    if cuda_features():
        pytest.skip("there is a GPU of CUDA")
    ctypes.CDLL(str(library()))


@functools.cache
def cuda_features() -> frozenset[str]:
    """What code for the GPU of this machine has; nothing where there is none of CUDA, or no driver for it."""
    try:
        gpu = cuda_gpu(Device("cuda"))
    except DeepZigError:
        return frozenset()
    return frozenset({gpu.architecture})


def _compile(output: Path, folder: Path) -> None:
    kernel_command = " ".join([COMPILER, *LIBRARY_OPTIONS, *KERNEL_OPTIONS, f"-I'{folder}/include'"])
    packages = [_package("tvm"), _package("tvm_ffi")]
    options = [
        *(f"-I{package}/include" for package in packages),
        f'-DSHIM_COMPILER="{kernel_command}"',
        f'-DSHIM_CHECKED="{" ".join(CHECKED_OPTIONS)}"',
        f'-DSHIM_CACHE="{folder}"',
        f"-Wl,-soname,{output.name}",
    ]
    libraries = [*(f"-L{package}/lib" for package in packages), "-ltvm_runtime", "-ltvm_ffi"]
    # as one source: TVM's headers take longer than all the rest
    sources = "".join(f'#include "{source}"\n' for source in sorted(SHIM.glob("*.cc")))
    command = [
        COMPILER,
        *LIBRARY_OPTIONS,
        "-O2",
        "-march=native",
        "-pthread",
        *options,
        "-x",
        "c++",
        "-",
        "-x",
        "none",
        *libraries,
    ]
    subprocess.run([*command, "-o", str(output)], input=sources, text=True, check=True)


def _package(name: str) -> Path:
    import importlib.util

    found = importlib.util.find_spec(name)
    assert found is not None and found.origin is not None
    return Path(found.origin).parent


def _key() -> str:
    """What the library depends on: its sources, TVM, and the processor that compiled kernels are for."""
    digest = hashlib.sha256("\0".join(_machine()).encode())
    for source in sorted(p for p in SHIM.rglob("*") if p.is_file()):
        digest.update(source.relative_to(SHIM).as_posix().encode() + source.read_bytes())
    return digest.hexdigest()[:24]


def _machine() -> Iterator[str]:
    from importlib.metadata import version

    yield from (platform.machine(), version("apache-tvm"), version("apache-tvm-ffi"), COMPILER)
    yield from (*KERNEL_OPTIONS, *CHECKED_OPTIONS)
    cpu = Path("/proc/cpuinfo")
    if cpu.exists():
        yield from re.findall(r"^(?:flags|Features)\s*:.*$", cpu.read_text(), re.M)[:1]
