"""The engine of the software GPUs with each way of switching stacks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from deepzig.cache import cache_folder

from ..arm import QEMU
from .software import COMPILER, SHIM

PROGRAM = Path(__file__).with_name("engine.cc")
OPTIONS = ["-std=c++17", "-O2", "-pthread", str(PROGRAM), str(SHIM / "engine.cc"), str(SHIM / "matrix.cc")]


@pytest.mark.parametrize("options", [[], ["-DSHIM_UCONTEXT"]], ids=["own", "ucontext"])
def test_the_engine(tmp_path: Path, options: list[str]) -> None:
    program = tmp_path / "engine"
    subprocess.run([COMPILER, *OPTIONS, *options, "-o", str(program)], check=True)
    assert subprocess.run([str(program)], capture_output=True, text=True, check=True).stdout == ""


@pytest.mark.slow
def test_the_engine_on_arm(tmp_path: Path) -> None:
    if QEMU is None:
        pytest.skip("qemu-user-static is not installed")
    program, folder = tmp_path / "engine", str(cache_folder("zig"))
    command = [sys.executable, "-m", "ziglang", "c++", "-target", "aarch64-linux-musl", "-static", *OPTIONS]
    environment = {**os.environ, "ZIG_GLOBAL_CACHE_DIR": folder, "ZIG_LOCAL_CACHE_DIR": folder}
    subprocess.run([*command, "-o", str(program)], check=True, env=environment)
    assert subprocess.run([QEMU, str(program)], capture_output=True, text=True, check=True).stdout == ""
