"""What kernels ask of a device, read from their lowered code, and refused where the device has less."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import tvm
from tvm import tirx
from tvm.ir import PointerType
from tvm.ir.instrument import pass_instrument
from tvm_ffi import structural_walk

from deepzig.errors import DeepZigError

from .device import Gpu

SPLIT = "tirx.SplitHostDevice"
"""The pass of TVM that makes a function of every launch."""

AXES = "xyz"


@dataclass(frozen=True)
class Kernel:
    """What a kernel asks for. What is known at the call only is None.

    Attributes:
        name: its name.
        block: threads of a block.
        grid: blocks along each axis of the grid.
        shared: bytes of shared memory of a block.
        buffers: bytes of each buffer that is an argument.
        scalars: arguments that are numbers: together they are one binding.
    """

    name: str
    block: int
    grid: Mapping[str, int | None]
    shared: int
    buffers: tuple[int | None, ...]
    scalars: int

    @property
    def bindings(self) -> int:
        """Slots for arguments, where a device counts them."""
        return len(self.buffers) + (self.scalars > 0)


def check(kernel: Kernel, gpu: Gpu) -> None:
    """Refuse a kernel that the device can't run.

    Raises:
        DeepZigError: a limit is exceeded.
    """
    asked: list[tuple[str, int | None, int | None]] = [
        ("threads in a block", kernel.block, gpu.max_threads),
        ("bytes of shared memory", kernel.shared, gpu.shared_bytes),
        ("bindings", len(kernel.buffers) if gpu.uniforms else kernel.bindings, gpu.bindings),
        *(("bytes in a buffer", size, gpu.binding_bytes) for size in kernel.buffers),
        *((f"blocks along {axis}", kernel.grid.get(axis), most) for axis, most in zip(AXES, gpu.grid, strict=True)),
    ]
    for what, wanted, most in asked:
        if wanted is not None and most is not None and wanted > most:
            raise DeepZigError(
                f"the kernel {kernel.name} needs {wanted} {what}, the device has {most}",
                f"lowering for {gpu.kind}",
                "report it with the config of the model",
            )


@pass_instrument
class Lowered:
    """Notes what TVM compiles while it is an instrument of the pass context: modules whose launches are functions."""

    def __init__(self) -> None:
        self.modules: list[Any] = []

    @property
    def kernels(self) -> list[Kernel]:
        """The kernels."""
        return [kernel for module in self.modules for kernel in kernels(module)]

    def run_after_pass(self, module: Any, info: Any) -> None:
        """What TVM calls after each pass."""
        if info.name == SPLIT:
            self.modules.append(module)


def kernels(module: Any) -> list[Kernel]:
    """The kernels of a module whose launches are functions."""
    functions = (f for f in module.functions.values() if "tirx.kernel_launch_params" in (f.attrs or {}))
    return [_kernel(f) for f in functions]


def _kernel(function: Any) -> Kernel:
    extents: dict[str, int | None] = {}
    sizes: dict[str, int | None] = {}
    shared: list[int | None] = []

    def note(node: Any) -> None:
        if isinstance(node, tirx.DeclBuffer):
            sizes[str(getattr(node.data, "name", ""))] = _bytes(node.buffer)
        elif isinstance(node, tirx.AllocBuffer):
            buffer: Any = node.buffer
            shared.extend([_bytes(buffer)] if buffer.scope() == "shared" else [])
        elif node.attr_key == "thread_extent":
            extents[str(node.node.thread_tag)] = _product([node.value])

    structural_walk(function.body, ((tirx.DeclBuffer, tirx.AllocBuffer, tirx.AttrStmt), note))
    pointers = [p for p in function.params if isinstance(p.ty, PointerType)]
    threads = [extent for tag, extent in extents.items() if tag.startswith("threadIdx")]
    if None in (*threads, *shared):
        raise ValueError(f"{function.attrs['global_symbol']}: sizes of blocks and shared memory must be constants")
    return Kernel(
        name=str(function.attrs["global_symbol"]),
        block=math.prod(filter(None, threads)),
        grid={axis: extents[tag] for axis in AXES if (tag := f"blockIdx.{axis}") in extents},
        shared=sum(filter(None, shared)),
        buffers=tuple(sizes.get(str(p.name)) for p in pointers),
        scalars=len(function.params) - len(pointers),
    )


def _bytes(buffer: Any) -> int | None:
    count = _product(buffer.shape)
    return None if count is None else count * tvm.DataType(str(buffer.dtype)).itemsize


def _product(factors: Iterable[Any]) -> int | None:
    """The product, if all factors are constants."""
    known = list(factors)
    if not all(isinstance(f, int | tirx.IntImm) for f in known):
        return None
    return math.prod(map(int, known))
