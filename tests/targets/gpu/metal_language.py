"""Whether text is the Metal Shading Language, as far as that can be told without Apple's compiler.

No package on PyPI or npm reads the language: naga and spirv-cross only write it. But it is C++14 with address spaces,
and so is, in clang, "C++ for OpenCL": zig's clang parses kernels with the headers in msl/ in place of Metal's. It finds
what a C++ compiler with the address spaces defined away can't: a pointer to threadgroup memory where one to the
thread's is wanted, one without an address space, functions that Metal does not have, C++17.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from deepzig.targets.gpu import embed

HEADERS = Path(__file__).parent / "msl"
POINTER = re.compile(r"(\w+ )?(?:const )?\b(?:void|bool|float|half|u?(?:char|short|int|long))[234]?(?: const)? ?[*&]")
SPACES = {"device ", "constant ", "thread ", "threadgroup "}
FLAGS = (
    "-triple", "spir64-unknown-unknown", "-x", "clcpp", "-cl-std=clc++2021", "-ffreestanding",
    "-cl-ext=-__opencl_c_generic_address_space,-__opencl_c_pipes,-__opencl_c_device_enqueue",
    "-Wno-unknown-attributes", "-Werror=pre-c++17-compat",
    f"-I{HEADERS}",
)  # fmt: skip


def sources(executable: Any) -> dict[str, str]:
    """Kernel -> its source, of what TVM compiled for Metal."""
    (code,) = embed.device_codes(embed.library_bytes(executable))
    return embed.sources(code)


def errors(source: str) -> list[str]:
    """What is wrong with a kernel's source: lines that begin with the number of the source's line."""
    done = _clang(source, "-fsyntax-only")
    found = [line.removeprefix("kernel.metal:") for line in done.stderr.splitlines() if "error:" in line]
    if done.returncode and not found:
        raise RuntimeError(done.stderr)  # clang itself
    for number, line in enumerate(source.splitlines(), 1):
        if any(space not in SPACES for space in POINTER.findall(line)):
            found.append(f"{number}: error: a pointer without an address space")
    return found


def preprocessed(source: str) -> str:
    """A kernel's source without macros."""
    return _clang(source, "-E").stdout


def _clang(source: str, *options: str) -> subprocess.CompletedProcess[str]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.metal"
        file.write_text(source)
        command = [sys.executable, "-m", "ziglang", "clang", "-cc1", *FLAGS, *options, file.name]
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
