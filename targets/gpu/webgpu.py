"""Kernels for WebGPU: shaders, and what their host does, for hosts that compile nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from . import limits
from .adapter import LIMITS
from .device import GpuTarget
from .pipeline import compile_module
from .programs import Program, programs
from .templates import templates
from .wgsl import Shader, shaders


@dataclass(frozen=True)
class WebGpuCode:
    """What TVM functions became.

    Attributes:
        programs: function -> what its host does.
        shaders: kernel that they launch -> its shader.
        limits: what the kernels need of an adapter, by the names of `GPUSupportedLimits`.
    """

    programs: dict[str, Program]
    shaders: dict[str, Shader]
    limits: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        """What a page reads; see `web/src/webgpu.js`."""
        programs = {name: {"sizes": p.sizes, "body": p.body} for name, p in self.programs.items()}
        texts, shaders = templates({name: shader.text for name, shader in self.shaders.items()})
        return {"limits": self.limits, "programs": programs, "texts": texts, "shaders": shaders}

    def export_library(self, path: str, **_: Any) -> None:
        """Write what a page reads to a file, as executables of TVM write machine code; nothing is linked."""
        Path(path).write_text(json.dumps(self.to_json(), separators=(",", ":")) + "\n", encoding="utf-8")


def compile_functions(module: Any, target: GpuTarget) -> WebGpuCode:
    """Compile the functions of a TVM module.

    Raises:
        DeepZigError: a kernel asks for more than the device has.
    """
    lowered = limits.Lowered()
    executable = compile_module(module, target.tvm_target(), [lowered])
    made = shaders(str(executable.mod.imports[0].inspect_source()))
    kernels = [replace(kernel, shared=made[kernel.name].shared) for kernel in lowered.kernels]
    for kernel in kernels:
        limits.check(kernel, target.gpu)
    hosts = {name: program for each in lowered.modules for name, program in programs(each).items()}
    return WebGpuCode(hosts, made, _needed(kernels))


def _needed(kernels: Sequence[limits.Kernel]) -> dict[str, int]:
    most = {
        "max_threads": max(kernel.block for kernel in kernels),
        "shared_bytes": max(kernel.shared for kernel in kernels),
        "bindings": max(len(kernel.buffers) for kernel in kernels),
    }
    return {name: most[field] for name, field in LIMITS.items() if field in most}
