"""What every well-formed module obeys, and when two modules are the same."""

from __future__ import annotations

from collections.abc import Mapping

from deepzig.errors import DeepZigError

from .op import ShapeError
from .records import Graph, Module, Node, Value


def verify(module: Module) -> None:
    """Check definitions before uses, unique names, op signatures and recorded types.

    Raises:
        DeepZigError: naming graph, node and the line of the model definition.
    """
    known: set[Value] = set()
    for value in (*module.params, *module.states):
        _define(value, known, "module")
    for node in module.weights:
        _verify_node(node, known, "weights")
    for graph in module.graphs:
        verify_graph(graph, known)


def verify_graph(graph: Graph, outer: set[Value] | None = None) -> None:
    """Check one graph; `outer` are the module's values (all that are used, if not given)."""
    known = set(graph.globals()) if outer is None else set(outer)
    for value in graph.inputs:
        _define(value, known, graph.name)
    for node in graph.nodes:
        _verify_node(node, known, graph.name)
    for value in graph.outputs:
        if value not in known:
            raise _error(f"{value} is returned but not defined", graph.name)


def _verify_node(node: Node, known: set[Value], graph: str) -> None:
    for value in node.inputs:
        if value is not None and value not in known:
            raise _error(f"{value} is used before its definition", f"{graph}, {node.op.name}, {node.where}")
    try:
        types = node.op.infer([v.type if v else None for v in node.inputs], node.attrs)
    except ShapeError as error:
        raise _error(str(error), f"{graph}, {node.where}") from None
    if types != tuple(v.type for v in node.outputs):
        raise _error(f"{node.op.name} gives {', '.join(map(str, types))}, not {node.outputs[0].type}", graph)
    for value in node.outputs:
        _define(value, known, graph)


def _define(value: Value, known: set[Value], graph: str) -> None:
    if value in known:
        raise _error(f"{value} is defined twice", graph)
    known.add(value)


def _error(what: str, where: str) -> DeepZigError:
    return DeepZigError(what, where, "this is a bug in a pass or a definition; bisect it with --fuse-limit")


def same(a: Module, b: Module) -> bool:
    """Whether two modules are equal up to the names of local values."""
    if [(v.name, v.type) for v in (*a.params, *a.states)] != [(v.name, v.type) for v in (*b.params, *b.states)]:
        return False
    if a.constants.keys() != b.constants.keys() or len(a.graphs) != len(b.graphs):
        return False
    if any((a.constants[k] != b.constants[k]).any() for k in a.constants):
        return False
    names: dict[Value, Value] = dict(zip((*a.params, *a.states), (*b.params, *b.states), strict=True))
    if not _same_nodes(a.weights, b.weights, names):
        return False
    return all(_same_graph(x, y, names) for x, y in zip(a.graphs, b.graphs, strict=True))


def _same_graph(a: Graph, b: Graph, outer: Mapping[Value, Value]) -> bool:
    if a.name != b.name or a.attrs != b.attrs or [v.type for v in a.inputs] != [v.type for v in b.inputs]:
        return False
    names = {**outer, **dict(zip(a.inputs, b.inputs, strict=True))}
    return _same_nodes(a.nodes, b.nodes, names) and [names.get(v) for v in a.outputs] == list(b.outputs)


def _same_nodes(a: tuple[Node, ...], b: tuple[Node, ...], names: dict[Value, Value]) -> bool:
    if len(a) != len(b):
        return False
    for x, y in zip(a, b, strict=True):
        if x.op is not y.op or dict(x.attrs) != dict(y.attrs) or len(x.outputs) != len(y.outputs):
            return False
        if [v and names.get(v) for v in x.inputs] != list(y.inputs):
            return False
        names.update(zip(x.outputs, y.outputs, strict=True))
    return True
