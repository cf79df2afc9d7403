"""What machine this is: its platform and its instruction sets. Asks for features, never for a CPU's name."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
from collections.abc import Callable
from functools import cache
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
}  # fmt: skip
"""Flag in /proc/cpuinfo of x86 -> LLVM's name."""

REQUEST = (158, 0x1023, 18)
"""The system call arch_prctl of Linux on x86: ARCH_REQ_XCOMP_PERM, for XTILEDATA (asm/prctl.h)."""

AUXILIARY = (
    (16, 1, "neon"), (16, 10, "fullfp16"), (16, 20, "dotprod"), (26, 13, "i8mm"), (26, 14, "bf16"),
)  # fmt: skip
"""Linux on Arm: entry of the auxiliary vector (AT_HWCAP, AT_HWCAP2), bit, LLVM's name (asm/hwcap.h)."""

MACOS = {
    "hw.optional.arm.FEAT_DotProd": "dotprod",
    "hw.optional.arm.FEAT_BF16": "bf16",
    "hw.optional.arm.FEAT_I8MM": "i8mm",
}
"""sysctl of macOS -> LLVM's name. Version 11 knows none of them."""


WINDOWS = {
    38: frozenset({"sse4.2"}),
    40: frozenset({"avx", "avx2", "bmi2", "f16c", "fma"}),
    41: frozenset({"avx512f"}),
}
"""Argument of IsProcessorFeaturePresent -> LLVM's names. It has no number for FMA, F16C and BMI2, but every CPU with
AVX2 that runs Windows has them; nor for AVX-512 beyond its first part, so nothing that needs more runs there."""


def this_machine() -> Machine:
    """The machine that this process runs on, with the features that DEEPZIG_CPU_FEATURES leaves it."""
    architecture, system = platform.machine().lower(), platform.system()
    name = f"{ARCHITECTURES.get(architecture, architecture)}-{SYSTEMS.get(system, system.lower())}"
    features = detect()
    if MASK in os.environ:
        features &= frozenset(os.environ[MASK].replace(" ", "").split(","))
    return Machine(name, features)


def detect() -> frozenset[str]:
    """The features of this machine that kernels may ask for."""
    system = platform.system()
    if system == "Darwin":
        return _macos()
    if system == "Windows":
        present = ctypes.windll.kernel32.IsProcessorFeaturePresent  # type: ignore[attr-defined,unused-ignore]
        return frozenset().union(*(names for number, names in WINDOWS.items() if present(number)))
    if platform.machine() == "aarch64":
        value = ctypes.CDLL(None).getauxval
        value.restype = ctypes.c_ulong
        return _auxiliary(value)
    return permitted(cpuinfo_features(Path("/proc/cpuinfo")))


def cpuinfo_features(cpuinfo: Path) -> frozenset[str]:
    """The features that Linux on x86 lists, which are those that it lets programs use."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return frozenset()
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    return frozenset(LINUX[flag] for flag in flags if flag in LINUX)


def permitted(features: frozenset[str]) -> frozenset[str]:
    """The features of x86 that this process may use: the system saves the tiles of AMX for those only that ask.

    One request is for the whole process, its threads of later included. Without, the first use of a tile ends it.
    """
    tiles = frozenset(feature for feature in features if feature.startswith("amx-"))
    return features if not tiles or _request_tiles() else features - tiles


@cache
def _request_tiles() -> bool:
    return bool(ctypes.CDLL(None).syscall(*map(ctypes.c_long, REQUEST)) == 0)


def _macos() -> frozenset[str]:
    asked = subprocess.run(["sysctl", *MACOS], capture_output=True, text=True, check=False).stdout
    found = {MACOS[key] for key, _, value in (line.partition(": ") for line in asked.splitlines()) if value == "1"}
    # the first of Apple's chips for Macs has what every later one has
    return frozenset(found | ({"neon", "dotprod"} if platform.machine() == "arm64" else set()))


def _auxiliary(value: Callable[[int], int]) -> frozenset[str]:
    return frozenset(name for entry, bit, name in AUXILIARY if value(entry) >> bit & 1)
