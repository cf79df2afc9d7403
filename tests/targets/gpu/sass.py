"""What is in code for NVIDIA's GPUs, told by NVIDIA's tools."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from pathlib import Path

import pytest

from deepzig.targets.gpu.toolkit import find_tool

MATRIX = re.compile(r"\b([HIQ]G?MMA)\b")
"""Instructions of matrix units: f16 and bf16, integers, 8-bit floats; with G, those of Hopper's warp groups."""


def disassembled(fatbin: bytes, arch: str) -> dict[str, str]:
    """Kernel -> its instructions on an architecture such as sm_80."""
    text = cuobjdump(fatbin, "-sass", "-arch", arch)
    _, *rest = re.split(r"Function : (\w+)\n", text)
    return dict(zip(rest[::2], rest[1::2], strict=True))


def matrix_instructions(instructions: str) -> set[str]:
    """Which matrix units a kernel uses."""
    return set(MATRIX.findall(instructions))


def architectures(fatbin: bytes) -> set[str]:
    """What there is code for: machine code, such as sm_90a, and PTX, such as ptx_80."""
    listed = cuobjdump(fatbin, "-lelf", "-lptx")
    machine = re.findall(r"^ELF file.*\.(sm_\w+)\.cubin$", listed, re.MULTILINE)
    text = re.findall(r"^PTX file.*\.sm_(\w+)\.ptx$", listed, re.MULTILINE)
    return {*machine, *(f"ptx_{number}" for number in text)}


def cuobjdump(fatbin: bytes, *options: str) -> str:
    """What cuobjdump prints."""
    tool, disassembler = find_tool("cuobjdump"), find_tool("nvdisasm")
    if tool is None or disassembler is None:
        pytest.skip("cuobjdump and nvdisasm are not installed")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "code.fatbin"
        file.write_bytes(fatbin)
        env = {**os.environ, "PATH": f"{disassembler.parent}{os.pathsep}{os.environ['PATH']}"}
        command = [str(tool), *options, str(file)]
        return subprocess.run(command, capture_output=True, text=True, check=True, env=env).stdout
