"""Kernels for Arm, run under qemu."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deepzig.targets.cpu.features import CpuTarget

from .conftest import Array, Run, compile_for
from .emulate import zig

QEMU = shutil.which("qemu-aarch64-static")
CODES = {"i": 0, "u": 1, "f": 2}
"""Kind of a numpy type -> type code of DLPack."""


def on_arm(kernel: Any, target: CpuTarget, folder: Path) -> Run:
    """Compile a kernel for Arm to a program that calls it once; skips the test where there is no qemu.

    Args:
        kernel: the kernel.
        target: what it is compiled for.
        folder: where to put the program.
    """
    if QEMU is None:
        pytest.skip("qemu-user-static is not installed")
    executable, name = compile_for(kernel, target.tvm_target())
    code, program = folder / f"{name}.ll", folder / name
    text = str(executable.mod.inspect_source("ll"))
    code.write_text(text)
    # tasks that wait for each other can't run one after the other
    tasks = 1 if "TVMBackendParallelBarrier" in text else 2
    source = Path(__file__).with_suffix(".c")
    macros = f"-DKERNEL=__tvm_ffi_{name}", f"-DTASKS={tasks}"
    zig("aarch64-linux", *macros, "-nostdlib", str(code), str(source), "-o", str(program))

    def run(*arrays: Array) -> None:
        told = []
        for array in arrays:
            head = [CODES[array.dtype.kind], 8 * array.itemsize, array.ndim, *array.shape]
            told.append(np.array(head, np.int64).tobytes() + array.tobytes())
        done = subprocess.run([str(QEMU), str(program)], input=b"".join(told), capture_output=True)
        assert done.returncode == 0, done.stderr
        at = 0
        for array in arrays:
            array[...] = np.frombuffer(done.stdout, array.dtype, array.size, at).reshape(array.shape)
            at += array.nbytes

    return run
