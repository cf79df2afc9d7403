"""What a CPU can do, as data: the instruction sets it has, and what they mean for the shape of a kernel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from deepzig.artifacts.machines import WASM, WEB
from deepzig.ir import TensorType
from deepzig.ir.quantize import FORMATS

from .layout import LANES, cache_row


@dataclass(frozen=True)
class Vectors:
    """The vector registers of a CPU.

    Attributes:
        registers: how many there are.
        lanes: f32 elements in each.
        integers: instructions for products of bytes; see `integers.DOTS`.
        matrices: instructions for products of matrices; see `methods.METHODS`.
        fused: whether there are multiply-adds with one rounding; else products and sums are rounded each.
    """

    registers: int
    lanes: int
    integers: str = ""
    matrices: str = ""
    fused: bool = True

    @property
    def pairs(self) -> bool:
        """Whether there are products of pairs of bf16, `vdpbf16ps`, for what attention multiplies."""
        return self.matrices in ("pairs", "amx")

    @property
    def tile(self) -> tuple[int, int]:
        """Rows and 16-column blocks of a product tile: its sums take half of the registers.

        The other half is for weights, for what widens them, and for an input element in all lanes. On AVX2,
        4 rows hide the latency of a multiply-add; 6 rows are no faster, and with f16 at half the rate.
        """
        sums = self.registers * self.lanes // LANES // 2
        columns = 1 if sums < 8 else 2
        return sums // columns, columns

    @property
    def square(self) -> tuple[int, int]:
        """The same with twice the columns and half the rows, where sums are many: as much work for a load.

        It suits products of pairs and of bytes: fewer steps that unpack codes, and experts with few rows waste less. On
        a Zen 5, 4 bits are faster by a seventh, and a batch of 16 by a sixth.
        """
        rows, columns = self.tile
        return (rows // 2, columns * 2) if rows > 4 else (rows, columns)


BASELINE = Vectors(registers=16, lanes=4)
VECTORS: dict[frozenset[str], Vectors] = {
    frozenset({"amx-bf16", "amx-int8", "avx512vnni"}): Vectors(registers=32, lanes=16, integers="vnni", matrices="amx"),
    frozenset({"avx512bf16", "avx512vnni"}): Vectors(registers=32, lanes=16, integers="vnni", matrices="pairs"),
    frozenset({"avx512vnni"}): Vectors(registers=32, lanes=16, integers="vnni"),
    frozenset({"avx512bw"}): Vectors(registers=32, lanes=16, integers="avx512"),
    frozenset({"avx2"}): Vectors(registers=16, lanes=8, integers="avx2"),
    frozenset({"dotprod"}): Vectors(registers=32, lanes=4, integers="dotprod"),
    frozenset({"neon"}): Vectors(registers=32, lanes=4),
    frozenset({"simd128"}): Vectors(registers=16, lanes=4, integers="simd128", fused=False),
}
"""Instruction sets -> registers; the first of which a CPU has all count. WebAssembly names no registers: it becomes
code for CPUs, of which many have 16."""


TRIPLES = {
    "x86_64-linux": "x86_64-unknown-linux-gnu",
    "aarch64-linux": "aarch64-unknown-linux-gnu",
    "aarch64-macos": "arm64-apple-macos11.0",
    "x86_64-windows": "x86_64-pc-windows-msvc",
    WASM: "wasm32-unknown-unknown-wasm",
    WEB: "wasm32-unknown-unknown-wasm",
}
"""Platform -> LLVM's name of architecture and system."""


@dataclass(frozen=True)
class CpuTarget:
    """A family of CPUs.

    Attributes:
        features: instruction sets beyond the architecture's baseline, as LLVM spells them. Code runs on every
            CPU that has all of them; elsewhere the loader refuses it. No CPU's name: virtual machines lie.
        platform: one of TRIPLES.
        name: what it is called on the command line.
    """

    features: frozenset[str]
    platform: str = "x86_64-linux"
    name: str = "native"
    device = "cpu"
    replay = False
    binding_bytes = None
    headwise = FORMATS

    @property
    def vectors(self) -> Vectors:
        """The widest vector registers that the features promise."""
        return next((v for needed, v in VECTORS.items() if needed <= self.features), BASELINE)

    @property
    def virtual_machine(self) -> bool:
        """Whether TVM's virtual machine calls the kernels."""
        return self.platform != WASM

    @property
    def triple(self) -> str:
        """LLVM's name of architecture and system."""
        return TRIPLES[self.platform]

    def tvm_target(self) -> Any:
        """The TVM target."""
        from tvm.target import Target

        attributes = [f"+{feature}" for feature in sorted(self.features)]
        # LLVM has no idea of WebAssembly's registers, and warns
        width = {"vector-width": 32 * self.vectors.lanes} if self.platform == WASM else {}
        return Target({"kind": "llvm", "mtriple": self.triple, "mattr": attributes, **width})

    def compile(self, module: Any) -> Any:
        """Compile a TVM module."""
        from .legalize import on_one_thread, separate_multiply_adds
        from .pipeline import compile_module

        lacking = [] if self.vectors.fused else [separate_multiply_adds()]
        if self.platform == WASM:
            lacking.append(on_one_thread())
        return compile_module(module, self.tvm_target(), lacking)

    def state_type(self, state: TensorType) -> TensorType:
        """Rows of a cache lie as `cache_row` says."""
        *lead, width = (d if isinstance(d, str) else int(d) for d in state.shape)
        dtype, size = cache_row(state.dtype, int(width))
        return TensorType(dtype, (*lead, size))
