"""The five records that everything else in the IR is a function or a table over.

A module holds parameters (from the checkpoint), states (the paged cache, written in place by the lowered code but a
plain value here), weight nodes (parameters computed from other parameters at compile time) and graphs that share them.
Values and nodes are compared by identity; types by content.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from .op import Op

Dim = int | str
"""A dimension: a number, or the name of a symbol that is bound when the graph runs."""

Attr = int | float | bool | str | tuple[int, ...] | tuple[str | int, ...]
Kind = Literal["local", "input", "param", "state"]

FLOATS = ("f32", "bf16", "f16", "q8", "q4", "fp8")
"""Storage types of weights and, up to `q8`, of caches; see `quantize` and `fp8` for those of few bits. Sums are f32."""

NUMPY: dict[str, np.dtype[Any]] = {
    "f32": np.dtype(np.float32),
    "bf16": np.dtype(np.uint16),
    "f16": np.dtype(np.float16),
    "i32": np.dtype(np.int32),
}
"""How a type is stored in numpy (bf16 as its bits)."""


@dataclass(frozen=True)
class TensorType:
    """Element type and shape of a value."""

    dtype: str
    shape: tuple[Dim, ...]

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True, eq=False)
class Value:
    """One tensor: an input, a parameter, a state, or the output of a node."""

    name: str
    type: TensorType
    kind: Kind = "local"

    @property
    def shape(self) -> tuple[Dim, ...]:
        """The type's shape."""
        return self.type.shape

    @property
    def is_global(self) -> bool:
        """Whether the value belongs to the module rather than to one graph."""
        return self.kind in ("param", "state")

    def __str__(self) -> str:
        return f"{'@' if self.is_global else '%'}{self.name}"


@dataclass(frozen=True, eq=False)
class Node:
    """One application of an op.

    `where` is the line of the model definition that asked for it, `layer` the layer of the model, if it is in one.
    """

    op: Op
    inputs: tuple[Value | None, ...]
    attrs: Mapping[str, Attr]
    outputs: tuple[Value, ...]
    where: str = ""
    layer: int | None = None

    @property
    def output(self) -> Value:
        """The output of a node that has exactly one."""
        (value,) = self.outputs
        return value


@dataclass(frozen=True, eq=False)
class Graph:
    """An entry point: nodes in execution order. `attrs` holds its row bounds (`rows`, `rows_per_seq`).

    After its results a graph returns the new value of every state that it uses, in the module's order.
    """

    name: str
    inputs: tuple[Value, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[Value, ...]
    attrs: Mapping[str, Attr] = field(default_factory=dict)

    def producers(self) -> dict[Value, Node]:
        """The node that makes each local value."""
        return {out: node for node in self.nodes for out in node.outputs}

    def globals(self) -> Iterator[Value]:
        """Parameters and states in order of first use."""
        seen: dict[Value, None] = {}
        for node in self.nodes:
            for value in node.inputs:
                if value is not None and value.is_global:
                    seen.setdefault(value)
        return iter(seen)


@dataclass(frozen=True, eq=False)
class Module:
    """Graphs over shared parameters and states.

    `constants` gives the data of the parameters that come from the config instead of the checkpoint;
    `weights` computes parameters from parameters, in order.
    """

    params: tuple[Value, ...]
    states: tuple[Value, ...]
    graphs: tuple[Graph, ...]
    constants: Mapping[str, np.ndarray] = field(default_factory=dict)
    weights: tuple[Node, ...] = ()

    def graph(self, name: str) -> Graph:
        """The graph called `name`.

        Raises:
            KeyError: there is none.
        """
        for graph in self.graphs:
            if graph.name == name:
                return graph
        raise KeyError(name)

    def states_of(self, graph: Graph) -> tuple[Value, ...]:
        """The states that a graph uses, in the module's order."""
        used = set(graph.globals())
        return tuple(state for state in self.states if state in used)

    def with_graphs(self, graphs: tuple[Graph, ...]) -> Module:
        """The same module with other graphs; itself when none changed."""
        if all(a is b for a, b in zip(graphs, self.graphs, strict=True)):
            return self
        return replace(self, graphs=graphs)
