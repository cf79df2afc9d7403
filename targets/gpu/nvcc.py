"""CUDA source to code for GPUs, by NVIDIA's compiler: no GPU and no driver is needed.

Without `--use_fast_math`: it makes division and square roots inexact, exp of 2 ulp one whose error grows with its
argument, and denormal numbers zero, for kernels that wait for memory anyway. Products and sums are fused to
multiply-adds, nvcc's default, as on the CPU. Without `--split-compile`: the code would depend on the number of cores.
"""

from __future__ import annotations

import logging
import re
import subprocess
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from deepzig.errors import DeepZigError

from .toolkit import find_tool

log = logging.getLogger(__name__)

NATIVE, VIRTUAL = "sm_", "ptx_"
"""What stands before the number of an architecture: machine code for it, or PTX, which the drivers of it and of later
ones compile when it is loaded."""

EXTRA = "pip install 'deepzig[compile-cuda]'"
FLAGS = ("--fatbin", "--std=c++17", "--disable-warnings", "--resource-usage", "--compress-mode=size", "--threads=0")
_TOLD = re.compile(
    r"Compiling entry function '(\w+)' for '(\w+)'(?s:.*?)properties for \1\n"
    r"\s*(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads\n"
    r".*Used (\d+) registers(?:.* (\d+) bytes smem)?"
)


@dataclass(frozen=True)
class Usage:
    """What a kernel takes on an architecture.

    Attributes:
        kernel: its name.
        arch: such as `sm_80`.
        registers: of a thread.
        shared: bytes of static shared memory of a block.
        stack: bytes of a thread's memory for arrays that are not in registers.
        spills: bytes that a thread stores and loads for want of registers.
    """

    kernel: str
    arch: str
    registers: int
    shared: int
    stack: int
    spills: int


@dataclass(frozen=True)
class Fatbin:
    """Code for several architectures, as CUDA's driver loads it, and what its kernels take."""

    data: bytes
    usage: tuple[Usage, ...]


def fatbin(source: str, archs: Iterable[str]) -> Fatbin:
    """Compile CUDA C++ for architectures, such as `sm_90a` (machine code) and `ptx_80` (for GPUs yet to come).

    Raises:
        DeepZigError: there is no nvcc, or it refuses the source.
    """
    archs = sorted(archs)
    nvcc = find_tool("nvcc")
    if nvcc is None:
        raise DeepZigError("there is no CUDA compiler", "nvcc", f"{EXTRA}, or set CUDA_HOME")
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "kernels.fatbin"
        (Path(folder) / "kernels.cu").write_text(source)
        # in its folder, so that no path is in the code
        words = [str(nvcc), *FLAGS, *_code(archs), "-o", out.name, "kernels.cu"]
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise _refused(nvcc, done.stdout + done.stderr, archs)
        result = Fatbin(out.read_bytes(), usage(done.stderr))
    seconds = time.perf_counter() - start
    kernels = len({u.kernel for u in result.usage})
    log.info("%d kernels for %s: %.1f s, %d bytes", kernels, ", ".join(archs), seconds, len(result.data))
    for u in result.usage:
        log.debug("%s", u)
        if u.spills:
            log.warning("%s spills %d bytes of registers on %s", u.kernel, u.spills, u.arch)
    return result


def usage(told: str) -> tuple[Usage, ...]:
    """What `ptxas -v` tells of kernels."""
    found = [
        Usage(kernel, arch, int(registers), int(shared or 0), int(stack), int(stores) + int(loads))
        for kernel, arch, stack, stores, loads, registers, shared in _TOLD.findall(told)
    ]
    return tuple(sorted(found, key=lambda u: (u.kernel, u.arch)))


def _code(archs: Sequence[str]) -> list[str]:
    """Options that make the code; PTX is a step on the way to machine code of its number, and made once for both."""
    kinds: dict[str, list[str]] = {}
    for arch in archs:
        number = arch.removeprefix(NATIVE).removeprefix(VIRTUAL)
        kinds.setdefault(number, []).append(arch if arch.startswith(NATIVE) else f"compute_{number}")
    return [f"--generate-code=arch=compute_{n},code=[{','.join(codes)}]" for n, codes in kinds.items()]


def _refused(nvcc: Path, told: str, archs: Sequence[str]) -> DeepZigError:
    reasons = [line for line in told.splitlines() if "error" in line or "fatal" in line] or ["no message"]
    if "host compiler" in reasons[-1]:
        error = DeepZigError("nvcc needs a C++ compiler", str(nvcc), "install g++, or name one with NVCC_CCBIN")
    elif "Unknown option" in reasons[-1]:
        hint = f"set CUDA_HOME to a toolkit of version 13, or take this one off the path and {EXTRA}"
        error = DeepZigError("nvcc is too old", str(nvcc), hint)
    elif "Unsupported gpu architecture" in reasons[-1]:
        error = DeepZigError(f"nvcc does not know one of {', '.join(archs)}", str(nvcc), f"{EXTRA}, or leave it out")
    else:
        where = f"{nvcc}, {', '.join(archs)}"
        error = DeepZigError(f"nvcc refused the kernels: {reasons[0].strip()}", where, "rerun with --traceback")
    error.__cause__ = RuntimeError(told)
    return error
