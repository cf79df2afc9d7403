"""What machine this is: its platform and its instruction sets. Asks for features, never for a CPU's name."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

from .machines import Machine

ARCHITECTURES = {"amd64": "x86_64", "arm64": "aarch64"}
"""Names that systems have for an architecture -> LLVM's."""

SYSTEMS = {"Darwin": "macos"}
"""Python's name of a system -> ours, where it is not the same in small letters."""

MASK = "DEEPZIG_CPU_FEATURES"
"""Environment variable: the only instruction sets to use, separated by commas; those that the CPU lacks don't count."""

LINUX = {
    "sse4_2": "sse4.2", "avx": "avx", "avx2": "avx2", "fma": "fma", "f16c": "f16c", "bmi2": "bmi2",
    "avx512f": "avx512f", "avx512bw": "avx512bw", "avx512dq": "avx512dq", "avx512vl": "avx512vl",
    "avx512_vnni": "avx512vnni", "avx_vnni": "avxvnni", "avx512_bf16": "avx512bf16", "avx512_fp16": "avx512fp16",
    "amx_tile": "amx-tile", "amx_bf16": "amx-bf16", "amx_int8": "amx-int8",
    "asimd": "neon", "asimddp": "dotprod", "fphp": "fullfp16", "bf16": "bf16", "i8mm": "i8mm",
}  # fmt: skip
"""Flag in /proc/cpuinfo -> LLVM's name."""

MACOS = {
    "hw.optional.arm.FEAT_DotProd": "dotprod",
    "hw.optional.arm.FEAT_BF16": "bf16",
    "hw.optional.arm.FEAT_I8MM": "i8mm",
}
"""sysctl of macOS -> LLVM's name."""


def this_machine() -> Machine:
    """The machine that this process runs on, with the features that DEEPZIG_CPU_FEATURES leaves it."""
    architecture, system = platform.machine().lower(), platform.system()
    name = f"{ARCHITECTURES.get(architecture, architecture)}-{SYSTEMS.get(system, system.lower())}"
    features = detect()
    if MASK in os.environ:
        features &= frozenset(os.environ[MASK].replace(" ", "").split(","))
    return Machine(name, features)


def detect(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """The features of this machine that kernels may ask for."""
    if platform.system() == "Darwin":
        asked = subprocess.run(["sysctl", *MACOS], capture_output=True, text=True, check=False).stdout
        found = {MACOS[key] for key, _, value in (line.partition(": ") for line in asked.splitlines()) if value == "1"}
        return frozenset(found | ({"neon"} if platform.machine() == "arm64" else set()))
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return frozenset()
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features"))), [])
    return frozenset(LINUX[flag] for flag in flags if flag in LINUX)
