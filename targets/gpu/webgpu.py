"""Kernels for WebGPU: shaders, and what their host does, for hosts that compile nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from . import limits
from .device import GpuTarget
from .pipeline import compile_module
from .programs import Program, programs
from .wgsl import Shader, shaders


@dataclass(frozen=True)
class WebGpuCode:
    """What TVM functions became.

    Attributes:
        programs: function -> what its host does.
        shaders: kernel that they launch -> its shader.
    """

    programs: dict[str, Program]
    shaders: dict[str, Shader]

    def to_json(self) -> dict[str, Any]:
        """What a page reads; see `web/src/webgpu.js`."""
        programs = {name: {"sizes": p.sizes, "body": p.body} for name, p in self.programs.items()}
        return {"programs": programs, "shaders": {name: shader.text for name, shader in self.shaders.items()}}


def compile_functions(module: Any, target: GpuTarget) -> WebGpuCode:
    """Compile the functions of a TVM module.

    Raises:
        DeepZigError: a kernel asks for more than the device has.
    """
    lowered = limits.Lowered()
    executable = compile_module(module, target.tvm_target(), [lowered])
    made = shaders(str(executable.mod.imports[0].inspect_source()))
    for kernel in lowered.kernels:
        limits.check(replace(kernel, shared=made[kernel.name].shared), target.gpu)
    hosts = {name: program for each in lowered.modules for name, program in programs(each).items()}
    return WebGpuCode(hosts, made)
