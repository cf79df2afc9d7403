"""Kernels for AVX-512, its extensions and AMX, run on any x86 machine with AVX2.

A kernel is compiled for its own target as far as LLVM's IR. There, calls of instructions that the machine may lack
become calls of functions in C (`emulate.c`), and what is left of the target, such as vectors of 512 bits, LLVM splits
into what AVX2 has. The rest is the same code: its loops, addresses and sizes are what is tested.
"""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tvm
from tvm.runtime import from_dlpack

from deepzig.artifacts.machines import MACHINES
from deepzig.cache import cache_folder
from deepzig.targets.cpu.features import CpuTarget

from .conftest import Array, aligned, compile_for

C_SOURCE = Path(__file__).with_suffix(".c")
HERE = MACHINES["x86-64-v3"].features
NAMES = {
    "avx512bf16.dpbf16ps.512": "dpbf16ps_512",
    "avx512.permvar.hi.512": "permvar_hi_512",
    "avx512.vpdpbusd.512": "vpdpbusd_512",
    "avx512.pmaddubs.w.512": "pmaddubsw_512",
    "avx512.pmaddw.d.512": "pmaddwd_512",
    **{name: name for name in ("ldtilecfg", "tilerelease", "tilezero", "tileloadd64", "tilestored64")},
    **{name: name for name in ("tdpbf16ps", "tdpbssd")},
}
"""LLVM's intrinsic for x86 -> the function that does the same."""

DECLARED = re.compile(r"^declare (?P<result>.+) @llvm\.x86\.(?P<name>[\w.]+)\((?P<types>.*)\).*$", re.M)
"""How an intrinsic is declared."""


@dataclass(frozen=True)
class Emulated:
    """A kernel that can be called with numpy arrays, and what it did."""

    function: Any
    library: Any

    def __call__(self, *arrays: Array) -> None:
        """Run it; its outputs are written into the arrays.

        Raises:
            AssertionError: it did something that a processor would refuse.
        """
        copies = [aligned(a) for a in arrays]
        for number, copy in enumerate(copies):
            begin = copy.ctypes.data
            self.library.emulated_array(number, ctypes.c_size_t(begin), ctypes.c_size_t(begin + copy.nbytes))
        self.function(*(from_dlpack(c) for c in copies))
        fault = self.library.emulated_fault().decode()
        assert not fault, fault
        for array, copy in zip(arrays, copies, strict=True):
            array[...] = copy

    def products(self) -> tuple[int, int]:
        """How many products of tiles there were since this was asked: of bf16, of int8."""
        return self.library.emulated_count(0), self.library.emulated_count(1)


def emulated(kernel: Any, target: CpuTarget, folder: Path) -> Emulated:
    """Compile a kernel for a target and load it with the target's instructions emulated.

    Args:
        kernel: the kernel.
        target: what it is compiled for.
        folder: where to put the library.
    """
    executable, name = compile_for(kernel, target.tvm_target())
    source, library = folder / f"{name}.ll", folder / f"{name}.so"
    source.write_text(without_instructions(str(executable.mod.inspect_source("ll"))))
    zig("x86_64-linux-gnu", "-mcpu=x86_64_v3", "-shared", "-nostdlib", str(source), str(C_SOURCE), "-o", str(library))
    return Emulated(tvm.runtime.load_module(str(library))[name], loaded(library))


def loaded(library: Path) -> Any:
    """The functions of a library that has the emulated instructions."""
    functions = ctypes.CDLL(str(library))
    functions.emulated_fault.restype = ctypes.c_char_p
    functions.emulated_count.restype = ctypes.c_long
    return functions


def zig(target: str, *words: str) -> None:
    """Compile C and LLVM's IR; zig has the LLVM that TVM has."""
    folder = str(cache_folder("zig"))
    command = [sys.executable, "-m", "ziglang", "cc", "-target", target, "-w", "-O1", "-fno-sanitize=all", *words]
    environment = {**os.environ, "ZIG_GLOBAL_CACHE_DIR": folder, "ZIG_LOCAL_CACHE_DIR": folder}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


def without_instructions(text: str) -> str:
    """LLVM's IR with functions for intrinsics, and with the features of a machine that lacks them.

    Pairs of bf16 become bits: such a machine would keep them as f32 meanwhile.
    """
    features = ",".join(f"+{f}" for f in sorted(HERE))
    text = re.sub(r'"target-features"="[^"]*"', f'"target-features"="{features}"', text).replace("x bfloat>", "x i16>")
    for found in list(DECLARED.finditer(text)):
        if found["name"] in NAMES:
            text = text.replace(found[0], _function(found.groupdict()))
            text = text.replace(f"@llvm.x86.{found['name']}(", f"@emulated.{found['name']}(")
    return text


def _function(intrinsic: Mapping[str, str]) -> str:
    """The definition of a function that takes what an intrinsic takes and hands it to C, vectors by address."""
    types = [kind.removesuffix(" immarg") for kind in _arguments(intrinsic["types"])]
    result, name = intrinsic["result"], NAMES[intrinsic["name"]]
    lines, handed = [], []
    if result != "void":
        lines.append(f"%result = alloca {result}, align 64")
        handed.append("ptr %result")
    for i, kind in enumerate(types):
        if kind.startswith("<"):
            lines += [f"%at{i} = alloca {kind}, align 64", f"store {kind} %{i}, ptr %at{i}, align 64"]
            handed.append(f"ptr %at{i}")
        else:
            handed.append(f"{kind.split()[0]} {'zeroext ' if kind == 'i8' else ''}%{i}")
    lines.append(f"call void @emulated_{name}({', '.join(handed)})")
    if result == "void":
        lines.append("ret void")
    else:
        lines += [f"%value = load {result}, ptr %result, align 64", f"ret {result} %value"]
    given = ", ".join(f"{kind.split()[0] if not kind.startswith('<') else kind} %{i}" for i, kind in enumerate(types))
    body = "\n  ".join(lines)
    declared = ", ".join(h.rpartition(" ")[0] for h in handed)
    return (
        f"declare void @emulated_{name}({declared})\n\n"
        f"define internal {result} @llvm.x86.{intrinsic['name']}({given}) {{\n  {body}\n}}"
    )


def _arguments(types: str) -> list[str]:
    """Cut at commas; the types of vectors have none."""
    return [t.strip() for t in types.split(",")] if types else []
