"""How many operations a second this CPU's multiply-add units do, by `peak.c`."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

from deepzig.runtime.machine import PROC

SOURCE = Path(__file__).with_name("peak.c")
FLOATS = ("avx512f", "fma")
BYTES = ("amx_int8", "avx512_vnni", *FLOATS)
FAMILIES: Mapping[str, tuple[str, ...]] = {
    "f32": FLOATS,
    "fp8": FLOATS,
    "bf16": ("amx_bf16", "avx512_bf16", *FLOATS),
    "q8": BYTES,
    "q4": BYTES,
}
"""Kind of weights -> instruction sets that its products may be computed with, the strongest first; named as in
/proc/cpuinfo. Products of bytes without VNNI have no peak of their own here: they are held against multiply-adds."""


class Peak:
    """The program, compiled.

    Args:
        folder: where to put it.
        proc: where Linux tells of the CPU.
    """

    def __init__(self, folder: Path, proc: Path = PROC) -> None:
        self._has: set[str] = set()
        self._program = folder / "peak"
        folder.mkdir(parents=True, exist_ok=True)
        try:
            has = set((proc / "cpuinfo").read_text().split())
            command = ["cc", "-O2", "-pthread", str(SOURCE), "-o", str(self._program)]
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            return
        self._has = has

    def family(self, kind: str) -> str | None:
        """The instruction set that products with a kind of weights are held against; None if none, or no C compiler."""
        return next((family for family in FAMILIES.get(kind, ()) if family in self._has), None)

    def flops(self, family: str, threads: int, seconds: float = 0.1) -> float:
        """Operations a second of so many threads."""
        command = [str(self._program), family, str(threads), str(seconds)]
        return float(subprocess.run(command, check=True, capture_output=True).stdout)
