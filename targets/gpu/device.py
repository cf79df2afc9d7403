"""What a GPU can do, as data, and the targets that are made of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from deepzig.artifacts.machines import WEB
from deepzig.ir import TensorType
from deepzig.ir.fp8 import FP8
from deepzig.targets.cpu.features import TRIPLES

from .layout import cache_row, word_row

SUBGROUP = 32
"""Threads that run in step and read each other's registers: a warp, or a simdgroup."""


@dataclass(frozen=True, eq=False)
class Gpu:
    """What a kind of GPUs can do.

    Attributes:
        kind: what TVM calls it; also the device that the runtime opens.
        max_threads: the most threads of a block (a threadgroup).
        shared_bytes: the most shared (threadgroup) memory of a block.
        bindings: the most buffers of a kernel; None for no limit.
        uniforms: whether numbers are passed in a binding of another kind, which is not one of these.
        binding_bytes: the largest buffer that a kernel can be given. Larger weights are cut into shards.
        grid: the most blocks along each axis.
        words_only: whether elements of buffers have 32 bits.
        compact: whether code is to be short, since it is sent as text, rather than have loads wait for each other less.
        replay: whether launches can be recorded and replayed as one.
        units: how matrices are multiplied: element type of the weight -> name of a unit of `units.UNITS`; what is not
            listed is multiplied by the unit `fma`.
        asynchronous: whether threads can go on while words are copied to shared memory (`dz_cp_async_*`).
    """

    kind: str
    max_threads: int
    shared_bytes: int
    bindings: int | None = None
    uniforms: bool = False
    binding_bytes: int = (1 << 31) - 1
    grid: tuple[int, int, int] = ((1 << 31) - 1, (1 << 16) - 1, (1 << 16) - 1)
    words_only: bool = False
    compact: bool = False
    replay: bool = False
    units: Mapping[str, str] = field(default_factory=dict)
    asynchronous: bool = False

    def unit(self, wdtype: str) -> str:
        """The name of the unit that multiplies by weights of this type."""
        return self.units.get(wdtype, "fma")


CUDA = Gpu(
    kind="cuda",
    max_threads=1024,
    shared_bytes=48 << 10,
    replay=True,
    units={"bf16": "mma_bf16", "fp8": "mma_bf16", "f16": "mma_f16", "q8": "mma_s8", "q4": "mma_s8"},
    asynchronous=True,
)
METAL = Gpu(
    kind="metal",
    max_threads=1024,
    shared_bytes=32 << 10,
    bindings=31,
    units=dict.fromkeys(("f32", "bf16", "fp8", "f16", "q8", "q4"), "simd_f32"),
)
WEBGPU = Gpu(  # the limits that every adapter has (WebGPU specification, section "Limits")
    kind="webgpu",
    max_threads=256,
    shared_bytes=16 << 10,
    bindings=8,
    uniforms=True,
    binding_bytes=128 << 20,
    grid=((1 << 31) - 1, (1 << 16) - 1, 1),  # TVM spreads x over x and z
    words_only=True,
    compact=True,
)


@dataclass(frozen=True)
class GpuTarget:
    """Code for a kind of GPUs, with the code of a host that launches it.

    Attributes:
        gpu: what the device can do.
        features: architectures that there is machine code for, such as `sm_90a`, and PTX, such as `ptx_80`, for later
            ones. None: source text, which the device's driver compiles when it is loaded (Metal).
        platform: of the host: one of `deepzig.targets.cpu.features.TRIPLES`.
        name: what it is called on the command line.
    """

    gpu: Gpu
    features: frozenset[str]
    platform: str
    name: str
    headwise = (FP8,)

    @property
    def device(self) -> str:
        """What kernels run on."""
        return self.gpu.kind

    @property
    def replay(self) -> bool:
        """Whether launches can be recorded and replayed as one."""
        return self.gpu.replay

    @property
    def virtual_machine(self) -> bool:
        """Whether TVM's virtual machine calls the kernels; a page has none."""
        return self.platform != WEB

    @property
    def binding_bytes(self) -> int | None:
        """The largest buffer that kernels can be given, where no two values of a call may lie in one."""
        return None if self.virtual_machine else self.gpu.binding_bytes

    @property
    def triple(self) -> str:
        """LLVM's name of the host's architecture and system."""
        return TRIPLES[self.platform]

    def tvm_target(self) -> Any:
        """The TVM target."""
        from tvm.target import Target

        threads = "max_num_threads" if self.gpu.kind == "webgpu" else "max_threads_per_block"
        limits = {threads: self.gpu.max_threads, "max_shared_memory_per_block": self.gpu.shared_bytes}
        if self.gpu.kind != "webgpu":
            limits["thread_warp_size"] = SUBGROUP
        # the generated source is the same for all architectures: they matter to the device's compiler only
        arch = {"arch": "sm_80"} if self.gpu.kind == "cuda" else {}
        # of the host for a page nothing is compiled; LLVM warns where it does not know the width of vectors
        width = {} if self.virtual_machine else {"vector-width": 128}
        host = {"kind": "llvm", "mtriple": self.triple, **width}
        return Target({"kind": self.gpu.kind, **limits, **arch}, host=host)

    def compile(self, module: Any) -> Any:
        """Compile a TVM module.

        Raises:
            DeepZigError: a kernel asks for more than the device has, or the device's compiler is missing or refuses it.
        """
        from . import embed, limits, nvcc
        from .pipeline import compile_module

        if not self.virtual_machine:
            from .webgpu import compile_functions

            return compile_functions(module, self)

        lowered = limits.Lowered()
        executable = compile_module(module, self.tvm_target(), [lowered])
        for kernel in lowered.kernels:
            limits.check(kernel, self.gpu)
        if not self.features:
            return executable
        library = embed.library_bytes(executable)
        compiled = embed.replace_text(library, self.gpu.kind, lambda text: nvcc.fatbin(text, self.features).data)
        return embed.Executable(executable, compiled)

    def state_type(self, state: TensorType) -> TensorType:
        """Rows of a cache lie as `cache_row` says."""
        *lead, width = (d if isinstance(d, str) else int(d) for d in state.shape)
        dtype, size = (word_row if self.gpu.words_only else cache_row)(state.dtype, int(width))
        return TensorType(dtype, (*lead, size))
