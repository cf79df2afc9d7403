"""WebGPU in this process: the shaders of kernels on a Vulkan device that is software, by way of wgpu."""

from __future__ import annotations

import functools
import operator
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from deepzig.targets.gpu.programs import Expression, Program, Statement
from deepzig.targets.gpu.webgpu import WebGpuCode
from deepzig.targets.gpu.wgsl import Shader

Array = npt.NDArray[Any]
DRIVERS = Path("/usr/share/vulkan/icd.d")
MOST_BLOCKS = 65535

OPERATORS: dict[str, Callable[[int, int], int]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.floordiv,
    "%": operator.mod,
    "min": min,
    "max": max,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "and": lambda a, b: int(bool(a and b)),
    "or": lambda a, b: int(bool(a or b)),
}

Launch = tuple[str, list[int], list[int], tuple[int, int]]
"""Kernel, arguments, numbers, and blocks along x and y."""


@functools.cache
def device() -> Any:
    """A device with the limits that every adapter has; skips the test where there is no software Vulkan."""
    wgpu = pytest.importorskip("wgpu")
    drivers = sorted(DRIVERS.glob("lvp_icd.*.json"))
    if not drivers:
        pytest.skip("there is no software Vulkan: install mesa-vulkan-drivers")
    os.environ["VK_ICD_FILENAMES"] = str(drivers[0])
    return wgpu.gpu.request_adapter_sync().request_device_sync()


def value(e: Expression, variables: Mapping[str, int]) -> int:
    """What an expression of a program is."""
    if isinstance(e, int):
        return e
    if isinstance(e, str):
        return variables[e]
    name, a, b = e
    return OPERATORS[name](value(a, variables), value(b, variables))


def launches(program: Program, shapes: list[tuple[int, ...]]) -> list[Launch]:
    """What a program launches for arguments of these shapes."""
    variables = {name: shapes[argument][axis] for name, (argument, axis) in program.sizes.items()}
    return list(_launches(program.body, variables))


def _launches(body: list[Statement], variables: dict[str, int]) -> Iterator[Launch]:
    for kind, *rest in body:
        if kind == "let":
            variables[rest[0]] = value(rest[1], variables)
        elif kind == "if":
            if value(rest[0], variables):
                yield from _launches(rest[1], variables)
        elif kind == "for":
            for i in range(value(rest[1], variables)):
                yield from _launches(rest[2], {**variables, rest[0]: i})
        else:
            name, arguments, numbers, grid = rest
            x, y = (value(size, variables) for size in grid)
            yield name, arguments, [value(number, variables) for number in numbers], (x, y)


class Runner:
    """Runs compiled functions on numpy arrays."""

    def __init__(self, code: WebGpuCode) -> None:
        self.code = code
        self._pipelines = {name: self._pipeline(name, shader) for name, shader in code.shaders.items()}

    @staticmethod
    def _pipeline(name: str, shader: Shader) -> Any:
        module = device().create_shader_module(code=shader.text)
        return device().create_compute_pipeline(layout="auto", compute={"module": module, "entry_point": "main"})

    def __call__(self, function: str, *arrays: Array) -> None:
        """Call a function, and write what its kernels wrote into the arrays."""
        buffers = [self.buffer(array) for array in arrays]
        written = self.launch(function, buffers, [array.shape for array in arrays])
        for i in written:
            arrays[i][...] = np.frombuffer(device().queue.read_buffer(buffers[i]), arrays[i].dtype)[
                : arrays[i].size
            ].reshape(arrays[i].shape)

    @staticmethod
    def buffer(array: Array) -> Any:
        """A buffer with the array's elements."""
        import wgpu

        usage = wgpu.BufferUsage.STORAGE | wgpu.BufferUsage.COPY_SRC | wgpu.BufferUsage.COPY_DST
        data = np.ascontiguousarray(array).tobytes()
        return device().create_buffer_with_data(data=data + bytes(-len(data) % 4 or 4 * (not data)), usage=usage)

    def launch(self, function: str, buffers: list[Any], shapes: list[tuple[int, ...]]) -> set[int]:
        """Start what a function launches: which arguments it writes."""
        written = set()
        encoder = device().create_command_encoder()
        for name, arguments, numbers, (x, y) in launches(self.code.programs[function], shapes):
            shader, pipeline = self.code.shaders[name], self._pipelines[name]
            block = self.numbers([*numbers, x - 1])
            resources = [*(buffers[i] for i in arguments), block]
            entries = [{"binding": i, "resource": {"buffer": b}} for i, b in enumerate(resources)]
            group = device().create_bind_group(layout=pipeline.get_bind_group_layout(0), entries=entries)
            commands = encoder.begin_compute_pass()
            commands.set_pipeline(pipeline)
            commands.set_bind_group(0, group)
            commands.dispatch_workgroups(min(x, MOST_BLOCKS), y, -(-x // MOST_BLOCKS))
            commands.end()
            written |= {i for i, w in zip(arguments, shader.written, strict=True) if w}
        device().queue.submit([encoder.finish()])
        return written

    @staticmethod
    def numbers(values: list[int]) -> Any:
        """A uniform block."""
        import wgpu

        data = np.array(values, np.int32).tobytes()
        return device().create_buffer_with_data(data=data + bytes(-len(data) % 16), usage=wgpu.BufferUsage.UNIFORM)
