"""Kinds of machines that code can be made for, as data: a platform, and the instruction sets that are asked for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Machine:
    """What code runs on.

    Attributes:
        platform: architecture and system, such as x86_64-linux or aarch64-macos.
        features: instruction sets beyond the architecture's baseline, as LLVM spells them.
    """

    platform: str
    features: frozenset[str]


WASM = "wasm32"
"""The platform of WebAssembly: code for a machine of its own, which node and browsers run wherever they are."""

WEB = "web"
"""The platform of pages: shaders, and data for what a browser's JavaScript does around them."""

ANYWHERE = frozenset({WASM, WEB})
"""Platforms of code that other programs run, on whatever machine they are."""

WASM_BYTES = 1 << 32
"""The most memory of WebAssembly: addresses have 32 bits."""

_V3 = frozenset({"avx2", "bmi2", "f16c", "fma"})
_V4 = _V3 | {"avx512f", "avx512bw", "avx512dq", "avx512vl"}
_AMX = _V4 | {"avx512bf16", "avx512vnni", "amx-tile", "amx-bf16", "amx-int8"}

MACHINES = {
    "amx": Machine("x86_64-linux", _AMX),
    "avx512-bf16": Machine("x86_64-linux", _V4 | {"avx512bf16", "avx512vnni"}),
    "avx512-vnni": Machine("x86_64-linux", _V4 | {"avx512vnni"}),
    "x86-64-v4": Machine("x86_64-linux", _V4),
    "x86-64-v3": Machine("x86_64-linux", _V3),
    "x86-64-v2": Machine("x86_64-linux", frozenset({"sse4.2"})),
    "aarch64-dotprod-linux": Machine("aarch64-linux", frozenset({"neon", "dotprod"})),
    "aarch64-linux": Machine("aarch64-linux", frozenset({"neon"})),
    "aarch64-macos": Machine("aarch64-macos", frozenset({"neon", "dotprod"})),
    "x86_64-windows": Machine("x86_64-windows", _V3),
    "wasm": Machine(WASM, frozenset({"bulk-memory", "simd128"})),
}
"""Names that `--target` knows; of a platform the most demanding first. x86-64-v2 to v4 as in the x86-64 psABI, where
kernels can make use of it; avx512-vnni is Ice Lake and later, avx512-bf16 Cooper Lake, Zen 4 and later, amx Sapphire
Rapids and later; dotprod has every Arm of version 8.4 or later, and each of Apple's."""

BF16_ROWS = frozenset({"amx-bf16", "avx512bf16"})
"""What a machine multiplies matrices of bf16 with where it rounds the rows that they multiply to bf16 too."""


def fitting(machine: Machine) -> str | None:
    """The most demanding kind that the machine is of."""
    kinds = ((name, kind) for name, kind in MACHINES.items() if kind.platform == machine.platform)
    return next((name for name, kind in kinds if kind.features <= machine.features), None)
