"""What a CPU can do, as data: the instruction sets it has, and what they mean for the shape of a kernel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from deepzig.ir import TensorType

from .layout import LANES, padded


@dataclass(frozen=True)
class Vectors:
    """The vector registers of a CPU.

    Attributes:
        registers: how many there are.
        lanes: f32 elements in each.
    """

    registers: int
    lanes: int

    @property
    def tile(self) -> tuple[int, int]:
        """Rows and 16-column blocks of a product tile: its sums take half of the registers.

        The other half is for weights, for what widens them, and for an input element in all lanes. On AVX2,
        4 rows hide the latency of a multiply-add; 6 rows are no faster, and with f16 at half the rate.
        """
        sums = self.registers * self.lanes // LANES // 2
        columns = 1 if sums < 8 else 2
        return sums // columns, columns


BASELINE = Vectors(registers=16, lanes=4)
VECTORS: dict[str, Vectors] = {
    "avx512f": Vectors(registers=32, lanes=16),
    "avx2": Vectors(registers=16, lanes=8),
    "neon": Vectors(registers=32, lanes=4),
}
"""Instruction set -> its registers; the first that a CPU has counts."""


@dataclass(frozen=True)
class CpuTarget:
    """A family of CPUs.

    Attributes:
        features: instruction sets beyond the architecture's baseline, as LLVM spells them. Code runs on every
            CPU that has all of them; elsewhere the loader refuses it. No CPU's name: virtual machines lie.
        triple: LLVM's name of architecture and system.
    """

    features: frozenset[str]
    triple: str = "x86_64-unknown-linux-gnu"
    name: str = "llvm"

    @property
    def vectors(self) -> Vectors:
        """The widest vector registers that the features promise."""
        return next((v for feature, v in VECTORS.items() if feature in self.features), BASELINE)

    def manifest(self) -> dict[str, Any]:
        """What the artifact records, and its reader checks, of the target."""
        return {"kind": self.name, "triple": self.triple, "features": sorted(self.features)}

    def tvm_target(self) -> Any:
        """The TVM target."""
        from tvm.target import Target

        attributes = [f"+{feature}" for feature in sorted(self.features)]
        return Target({"kind": "llvm", "mtriple": self.triple, "mattr": attributes})

    def compile(self, module: Any) -> Any:
        """Compile a TVM module."""
        from .pipeline import compile_module

        return compile_module(module, self.tvm_target())

    def state_type(self, state: TensorType) -> TensorType:
        """A cache row is padded to whole vectors."""
        *lead, width = (d if isinstance(d, str) else int(d) for d in state.shape)
        return TensorType(state.dtype, (*lead, padded(int(width))))
