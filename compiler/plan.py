"""The kernel launches of a graph, in order: what the target's lowerings ask for, before it becomes Relax."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from deepzig.errors import DeepZigError
from deepzig.ir import Graph, Module, Node, TensorType, Value
from deepzig.targets.base import Layout, Table, Target, choose

from .weights import Packed


@dataclass(frozen=True, eq=False)
class Tensor:
    """An argument or result of a launch, with its physical type; compared by identity."""

    name: str
    type: TensorType


@dataclass(frozen=True)
class Launch:
    """One kernel call for a node. With `in_place` the last argument is written and `outputs` is its new version."""

    kernel: Any
    args: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    in_place: bool
    node: Node

    @property
    def kernel_name(self) -> str:
        """The kernel's symbol."""
        return str(self.kernel.attrs["global_symbol"])

    @property
    def op(self) -> str:
        """The name of the node's op."""
        return self.node.op.name

    @property
    def layer(self) -> int | None:
        """The layer of the model, if the node is in one."""
        return self.node.layer

    @property
    def where(self) -> str:
        """The line of the model definition."""
        return self.node.where


@dataclass
class Plan:
    """A lowered graph; arguments are inputs, then states, then weights in order of first use."""

    name: str
    graph: Graph
    inputs: tuple[Tensor, ...]
    states: tuple[Tensor, ...]
    weights: dict[Packed, Tensor] = field(default_factory=dict)
    launches: list[Launch] = field(default_factory=list)
    outputs: tuple[Tensor, ...] = ()
    names: dict[Tensor, str] = field(default_factory=dict)
    """Names in the graph, of the tensors that are values there."""


def versions(plan: Plan) -> dict[Tensor, Tensor]:
    """What launches made of a tensor in place -> the tensor that it was at first, where it lies."""
    first: dict[Tensor, Tensor] = {}
    for launch in plan.launches:
        if launch.in_place:
            first[launch.outputs[0]] = first.get(launch.args[-1], launch.args[-1])
    return first


def partials(plan: Plan) -> list[bool]:
    """Of each launch whether it writes a part of a value that others have begun; caches are no such values."""
    first = versions(plan)
    return [launch.in_place and first[launch.outputs[0]] not in plan.states for launch in plan.launches]


@dataclass
class _Recorder:
    """The `Emitter` that lowerings write to."""

    plan: Plan
    values: dict[Value, Tensor]
    node: Node

    @property
    def graph(self) -> str:
        return self.plan.name

    def value(self, value: Value) -> Tensor:
        return self.values[value]

    def weight(self, layout: Layout, *sources: Value) -> Tensor:
        packed = Packed("+".join(v.name for v in sources) + f"@{layout.name}", layout, sources)
        return self.plan.weights.setdefault(packed, Tensor(packed.name, packed.type))

    def call(self, kernel: Any, args: Sequence[Tensor], *outputs: TensorType) -> Tensor | tuple[Tensor, ...]:
        results = tuple(Tensor(f"t{len(self.plan.launches)}.{i}", t) for i, t in enumerate(outputs))
        self._launch(kernel, args, results, in_place=False)
        return results[0] if len(results) == 1 else results

    def update(self, kernel: Any, args: Sequence[Tensor]) -> Tensor:
        result = Tensor(f"t{len(self.plan.launches)}.0", args[-1].type)
        self._launch(kernel, args, (result,), in_place=True)
        return result

    def _launch(self, kernel: Any, args: Sequence[Tensor], results: tuple[Tensor, ...], in_place: bool) -> None:
        self.plan.launches.append(Launch(kernel, tuple(args), results, in_place, self.node))


def plan_graph(graph: Graph, module: Module, target: Target, table: Table) -> Plan:
    """The launches of one graph.

    Raises:
        DeepZigError: the target has no kernel for an op.
    """
    states = module.states_of(graph)
    values = {v: Tensor(v.name, v.type) for v in graph.inputs}
    values |= {v: Tensor(v.name, target.state_type(v.type)) for v in states}
    plan = Plan(graph.name, graph, tuple(values[v] for v in graph.inputs), tuple(values[v] for v in states))
    for node in graph.nodes:
        lower = choose(table, node.op.name, target.features)
        if lower is None:
            raise DeepZigError(
                f"the target {target.name} has no kernel for {node.op.name}", node.where, "choose another --target"
            )
        results = lower(_Recorder(plan, values, node), node, target)
        made = dict(zip(node.outputs, results if isinstance(results, tuple) else (results,), strict=True))
        values.update(made)
        plan.names.update({tensor: value.name for value, tensor in made.items()})
    plan.outputs = tuple(values[v] for v in graph.outputs[: len(graph.outputs) - len(states)])
    return plan
