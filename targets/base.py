"""What the compiler asks of a target: how ops become kernel calls, and how weights and caches are laid out."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from deepzig.ir import Node, TensorType, Value

Operand = Any
"""A tensor in the lowered function; opaque to the target."""


@dataclass(frozen=True)
class Layout:
    """How a weight lies in the artifact.

    Attributes:
        name: unique; part of the stored tensor's name.
        type: the stored type, given the types of the sources.
        pack: the stored array of one leading slice, given one slice of each source (rank 2 sources are one slice).
        part: which rows of the first dimension are stored, from and to; None for all.
    """

    name: str
    type: Callable[..., TensorType]
    pack: Callable[..., npt.NDArray[np.generic]]
    part: tuple[int, int] | None = None

    def stored(self, *sources: TensorType) -> TensorType:
        """The stored type, given the types of the sources."""
        if self.part is not None:
            begin, end = self.part
            sources = tuple(TensorType(s.dtype, (end - begin, *s.shape[1:])) for s in sources)
        return self.type(*sources)


class Emitter(Protocol):
    """Where a lowering writes its kernel calls."""

    @property
    def graph(self) -> str:
        """The name of the graph that is lowered: `prefill` has many rows of a sequence in a call, others few."""
        ...

    def value(self, value: Value) -> Operand:
        """An input, an intermediate or a state."""

    def weight(self, layout: Layout, *sources: Value) -> Operand:
        """Parameters in the target's layout."""

    def call(self, kernel: Any, args: Sequence[Operand], *outputs: TensorType) -> Any:
        """Call a kernel: one operand, or a tuple for several outputs."""

    def update(self, kernel: Any, args: Sequence[Operand]) -> Operand:
        """Call a kernel that writes its last argument in place."""


class Target(Protocol):
    """A kind of machine."""

    @property
    def name(self) -> str:
        """What it is called on the command line."""
        ...

    @property
    def features(self) -> frozenset[str]:
        """What it has beyond the baseline, as LLVM spells it."""
        ...

    @property
    def platform(self) -> str:
        """Architecture and system, such as x86_64-linux."""
        ...

    @property
    def triple(self) -> str:
        """LLVM's name of them."""
        ...

    @property
    def device(self) -> str:
        """What kernels run on: `cpu`, or the kind of a GPU."""
        ...

    @property
    def replay(self) -> bool:
        """Whether launches can be recorded and replayed as one."""
        ...

    @property
    def virtual_machine(self) -> bool:
        """Whether TVM's virtual machine calls the kernels; else whoever loads an artifact does, after its plan."""
        ...

    @property
    def binding_bytes(self) -> int | None:
        """The largest buffer that kernels can be given, where no two values of a call may lie in one; else None."""
        ...

    @property
    def headwise(self) -> Collection[str]:
        """Formats of quantised matrices by which attention can multiply head by head."""
        ...

    def compile(self, module: Any) -> Any:
        """Compile a TVM module: an executable that can be exported as a file of code."""

    def state_type(self, state: TensorType) -> TensorType:
        """The physical type of a cache."""
        ...


Lower = Callable[[Emitter, Node, Any], Any]


@dataclass(frozen=True)
class Variant:
    """One way to lower an op, for targets that have all of `requires`."""

    lower: Lower
    requires: frozenset[str] = frozenset()


Table = Mapping[str, tuple[Variant, ...]]


def choose(table: Table, op: str, features: frozenset[str]) -> Lower | None:
    """The first variant of `op` whose requirements the target meets."""
    return next((v.lower for v in table.get(op, ()) if v.requires <= features), None)
