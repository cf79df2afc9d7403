"""Shaders for WebGPU: what TVM writes for each kernel, with those of our device functions that it calls."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm_ffi
from tvm import tirx
from tvm.script import tirx as T

from .compact import compacted
from .preludes import prelude
from .shorten import shortened
from .spelling import spelled

KERNEL = re.compile(r"^// Function: \w+\n", re.M)
ENTRY = re.compile(r"@compute @workgroup_size\((\d+), 1, 1\)\nfn (\w+)\((.*?)\n\) \{\n", re.S)
SHARED = re.compile(r"^var<workgroup>\w+:(?:array<(vec4)?\W?\w+>?,(\w+)>|i32);", re.M)
LEAST = ("-2147483648i", "i32(-2147483648)")
"""A number that TVM writes as what is none in WGSL, and how to write it."""
BINDING = re.compile(r"@binding\(\d+\) var<storage, (read|read_write)>")
NAME = re.compile(r"\bdz_\w+")
DEFINED = re.compile(r"^(?:fn|var<\w+>) (dz_\w+)", re.M)


@dataclass(frozen=True)
class Shader:
    """A kernel's code.

    Attributes:
        text: WGSL that begins with `main`. Its buffers are bindings 0, 1, ... of group 0; the next one is a uniform
            block with its numbers, 4 bytes each, and the greatest index of a block along x.
        written: of each buffer whether it is written.
        shared: bytes of workgroup memory.
    """

    text: str
    written: tuple[bool, ...]
    shared: int


def shaders(source: str) -> dict[str, Shader]:
    """Kernel -> its shader, of what TVM wrote for a module."""
    library = _library()
    parts = [part for part in KERNEL.split(source) if "@compute" in part]
    return dict(_shader(part, library) for part in parts)


def _shader(text: str, library: dict[str, str]) -> tuple[str, Shader]:
    text = "".join(line for line in text.splitlines(True) if not line.startswith("//"))
    entry = ENTRY.search(text)
    assert entry is not None
    threads, name, _ = entry.groups()
    text = text.replace("dz_fma(", "fma(")
    used = _used(text, library)
    head = [f"const dz_threads = {threads}u;\n", *(library[key] for key in library if key in used)]
    note = "  dz_thread = threadIdx.x;\n" if "dz_thread" in used else ""
    note += "  let tx = i32(threadIdx.x);\n"
    text = text[: entry.end()] + note + text[entry.end() :].replace("i32(threadIdx.x)", "tx")
    written = tuple(access == "read_write" for access in BINDING.findall(text))
    text = shortened("".join(head if used else []) + text.replace(*LEAST))
    arrays = SHARED.findall(text)
    assert len(arrays) == text.count("var<workgroup>")
    counts = (int(threads if size == "dz_threads" else size or 1) * (4 if vector else 1) for vector, size in arrays)
    return name, Shader(spelled(compacted(text)), written, 4 * sum(counts))


def _library() -> dict[str, str]:
    """Name -> the part of the prelude that defines it."""
    parts = [part.strip() + "\n" for part in prelude("webgpu").split("\n\n")]
    parts = [re.sub(r" *//.*", "", part) for part in parts]
    return {name: part for part in parts for name in DEFINED.findall(part)}


def _used(text: str, library: dict[str, str]) -> set[str]:
    used: set[str] = set()
    wanted = set(NAME.findall(text))
    while wanted := wanted & library.keys() - used:
        used |= wanted
        wanted = {name for part in wanted for name in NAME.findall(library[part])}
    return used


def exact_numbers() -> Any:
    """The pass that writes numbers by their bits where the six digits that TVM writes in WGSL would be another's."""

    def exact(number: Any) -> Any:
        value = float(number.value)
        if str(number.ty) != "float32" or float(f"{value:e}") == value:
            return number
        return T.call_pure_extern("float32", "bitcast<f32>", T.uint32(int(np.float32(value).view(np.uint32))))

    def apply(function: Any, _module: Any, _context: Any) -> Any:
        if function.attrs["target"].kind.name != "webgpu":
            return function
        return tvm_ffi.structural_map(function, (tirx.FloatImm, exact))

    return tirx.transform.prim_func_pass(apply, opt_level=0, name="exact_numbers")
