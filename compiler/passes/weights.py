"""Work on parameters alone, moved from run time to compile time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from deepzig.ir import Module, Node, TensorType, Value


def hoist_weights(module: Module) -> Module:
    """Nodes that read only parameters -> weight nodes of the module, shared between graphs that ask for the same."""
    made: dict[tuple[object, ...], Node] = {node_key(n): n for n in module.weights}
    graphs = []
    for graph in module.graphs:
        swap: dict[Value, Value] = {}
        kept = []
        for node in graph.nodes:
            node = _renamed(node, swap)
            if node.inputs and all(v is None or v.kind == "param" for v in node.inputs):
                weight = made.setdefault(node_key(node), _as_weight(node))
                swap.update(zip(node.outputs, weight.outputs, strict=True))
            else:
                kept.append(node)
        graphs.append(replace(graph, nodes=tuple(kept)) if swap else graph)
    weights = tuple(made.values())
    return module if len(weights) == len(module.weights) else replace(module, graphs=tuple(graphs), weights=weights)


def share_parameters(module: Module, same: Mapping[str, str]) -> Module:
    """Parameters that are copies of others -> those others.

    Args:
        module: the module.
        same: name of a copy -> name of the parameter that it equals; copies that the module lacks are passed over.
    """
    by_name = {v.name: v for v in module.params}
    swap = {by_name[copy]: by_name[own] for copy, own in same.items() if copy in by_name}
    if not swap:
        return module
    graphs = tuple(replace(g, nodes=tuple(_renamed(node, swap) for node in g.nodes)) for g in module.graphs)
    return replace(module, params=tuple(v for v in module.params if v not in swap), graphs=graphs)


def node_key(node: Node) -> tuple[object, ...]:
    """What makes two weight nodes the same."""
    return (node.op.name, tuple(map(id, node.inputs)), tuple(sorted((k, repr(v)) for k, v in node.attrs.items())))


def _renamed(node: Node, swap: dict[Value, Value]) -> Node:
    inputs = tuple(None if v is None else swap.get(v, v) for v in node.inputs)
    return node if inputs == node.inputs else replace(node, inputs=inputs)


def _as_weight(node: Node) -> Node:
    detail = "-".join(str(v).strip("()").replace(", ", "x").replace("'", "") for _, v in sorted(node.attrs.items()))
    name = f"{'+'.join(v.name for v in node.inputs if v is not None)}.{node.op.name}.{detail}"
    name = name.replace("+", "-and-")
    return replace(node, outputs=tuple(Value(name, TensorType(v.type.dtype, v.shape), "param") for v in node.outputs))
