"""Plans of the compiler, run on software Vulkan launch by launch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import tvm

from deepzig.compiler.plan import Plan, Tensor
from deepzig.compiler.weights import WeightSource
from deepzig.ir import TensorType
from deepzig.targets.gpu.device import GpuTarget
from deepzig.targets.gpu.webgpu import WebGpuCode, compile_functions

from .vulkan import Runner, device, launches

Array = npt.NDArray[Any]
NUMPY = {"f32": np.float32, "i32": np.int32, "u32": np.uint32}


def compiled(plans: Sequence[Plan], target: GpuTarget) -> WebGpuCode:
    """The kernels of all plans."""
    kernels = {launch.kernel_name: launch.kernel for plan in plans for launch in plan.launches}
    return compile_functions(tvm.IRModule(kernels), target)


def shape_of(type_: TensorType, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The shape for these sizes of symbols."""
    return tuple(math.prod(sizes.get(f, 0) or int(f) for f in str(d).split("*")) for d in type_.shape)


def sizes_of(tensors: Sequence[Tensor], shapes: Sequence[tuple[int, ...]]) -> dict[str, int]:
    """Symbol -> size."""
    pairs = [p for t, shape in zip(tensors, shapes, strict=True) for p in zip(t.type.shape, shape, strict=True)]
    return {name: size for name, size in pairs if isinstance(name, str)}


def dispatches(plan: Plan, code: WebGpuCode, shapes: Sequence[tuple[int, ...]]) -> Iterator[tuple[int | None, str]]:
    """Layer and kernel of each dispatch of a call whose inputs and states have these shapes."""
    sizes = sizes_of([*plan.inputs, *plan.states], shapes)
    for launch in plan.launches:
        tensors = [*launch.args, *(() if launch.in_place else launch.outputs)]
        program = code.programs[launch.kernel_name]
        for name, *_ in launches(program, [shape_of(t.type, sizes) for t in tensors]):
            yield launch.layer, name


def stored(plans: list[Plan], source: WeightSource) -> dict[str, Array]:
    """Name of a tensor -> the weight, as the target lays it out."""
    packed = {weight: tensor for plan in plans for weight, tensor in plan.weights.items()}
    return {
        tensor.name: np.concatenate([chunk.reshape(-1) for chunk in source.packed(weight)])
        for weight, tensor in packed.items()
    }


class Model:
    """Plans with their weights and caches on the device."""

    def __init__(
        self, plans: Sequence[Plan], target: GpuTarget, weights: Mapping[str, Array], caches: Mapping[str, Array]
    ):
        self.code = compiled(plans, target)
        self.runner = Runner(self.code)
        self.plans = {plan.name: plan for plan in plans}
        self._kept = {name: Runner.buffer(array) for name, array in {**weights, **caches}.items()}
        self._shapes = {name: array.shape for name, array in caches.items()}

    def __call__(self, name: str, inputs: Mapping[str, Array | Any]) -> list[Any]:
        """Run a plan on arrays: its outputs, arrays as well."""
        plan = self.plans[name]
        given = [*(inputs[t.name].shape for t in plan.inputs), *(self._shapes[t.name] for t in plan.states)]
        sizes = sizes_of([*plan.inputs, *plan.states], given)
        buffers: dict[Tensor, Any] = {t: Runner.buffer(inputs[t.name]) for t in plan.inputs}
        buffers |= {t: self._kept[t.name] for t in (*plan.states, *plan.weights.values())}
        for launch in plan.launches:
            if launch.in_place:
                buffers[launch.outputs[0]] = buffers[launch.args[-1]]
            else:
                noise = {t: np.full(shape_of(t.type, sizes), 0x7FC00000, np.uint32) for t in launch.outputs}
                buffers |= {t: Runner.buffer(array) for t, array in noise.items()}
            tensors = [*launch.args, *(() if launch.in_place else launch.outputs)]
            shapes = [shape_of(t.type, sizes) for t in tensors]
            self.runner.launch(launch.kernel_name, [buffers[t] for t in tensors], shapes)
        return [self._read(buffers[t], t.type, sizes) for t in plan.outputs]

    @staticmethod
    def _read(buffer: Any, type_: TensorType, sizes: Mapping[str, int]) -> Array:
        shape = shape_of(type_, sizes)
        return np.frombuffer(device().queue.read_buffer(buffer), NUMPY[type_.dtype])[: math.prod(shape)].reshape(shape)
