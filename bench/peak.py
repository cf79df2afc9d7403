"""How many floating-point operations a second this CPU's multiply-add units do, by `peak.c`."""

from __future__ import annotations

import subprocess
from pathlib import Path

from deepzig.runtime.machine import PROC

SOURCE = Path(__file__).with_name("peak.c")
FAMILIES = ("amx_bf16", "avx512f", "fma")
"""Instruction sets that it knows, the strongest first; named as in /proc/cpuinfo."""


class Peak:
    """The program, compiled.

    Args:
        folder: where to put it.
        proc: where Linux tells of the CPU.

    Attributes:
        family: of FAMILIES, the strongest that this CPU has; None where there is none, or no C compiler.
    """

    def __init__(self, folder: Path, proc: Path = PROC) -> None:
        try:
            words = set((proc / "cpuinfo").read_text().split())
        except OSError:
            words = set()
        self.family = next((family for family in FAMILIES if family in words), None)
        self._program = folder / "peak"
        if self.family is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        try:
            command = ["cc", "-O2", "-pthread", str(SOURCE), "-o", str(self._program)]
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            self.family = None

    def flops(self, threads: int, seconds: float = 0.1) -> float:
        """Operations a second of so many threads; NaN where it is not known."""
        if self.family is None:
            return float("nan")
        command = [str(self._program), self.family, str(threads), str(seconds)]
        return float(subprocess.run(command, check=True, capture_output=True).stdout)
