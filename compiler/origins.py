"""Which nodes of the traced graph a node of the fused graph stands for.

Passes leave no record of it; it follows from what both graphs name alike: values that no rewrite touched, parameters,
and the value that a rewrite began with, whose name the new ones continue (see `deepzig.ir.rewrite`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from deepzig.ir import Graph, Node, Value


def origins(before: Graph, after: Graph, weights: Sequence[Node]) -> dict[Node, list[Node]]:
    """For each node of the fused graph the nodes that it stands for, in order.

    Args:
        before: the traced graph.
        after: the same graph after all passes.
        weights: what the fused module computes from parameters at compile time.
    """
    made = {out: node for node in weights for out in node.outputs}
    order = {node: number for number, node in enumerate(after.nodes)}
    old = set(map(_key, before.nodes))
    kept = {_key(node): node for node in after.nodes}
    new = [node for node in after.nodes if _key(node) not in old]
    readers: dict[str, list[Node]] = {}
    for node in new:
        for name in dict.fromkeys(name for value in node.inputs for name in sources(value, made)):
            readers.setdefault(name, []).append(node)
    begun = {node.outputs[0].name.split(".")[0]: node for node in new}
    users: dict[Value, list[Node]] = {}
    for node in before.nodes:
        for value in node.inputs:
            if value is not None:
                users.setdefault(value, []).append(node)

    found: dict[Node, list[Node]] = {}
    for node in reversed(before.nodes):
        name = node.outputs[0].name
        readings = [reader for v in node.inputs for source in sources(v, {}) for reader in readers.get(source, [])]
        if _key(node) in kept:
            found[node] = [kept[_key(node)]]
        elif readings:
            found[node] = list(dict.fromkeys(readings))
        elif name in begun:
            found[node] = [begun[name]]
        else:
            # nothing is computed twice: who needs it first computes it
            asking = [target for out in node.outputs for user in users.get(out, []) for target in found.get(user, [])]
            found[node] = [min(asking, key=order.__getitem__)] if asking else []
    result: dict[Node, list[Node]] = {node: [] for node in after.nodes}
    for node in before.nodes:
        for target in found[node]:
            result[target].append(node)
    return result


def _key(node: Node) -> tuple[str, str]:
    return node.op.name, node.outputs[0].name


def sources(value: Value | None, made: Mapping[Value, Node]) -> Iterator[str]:
    """Names of the parameters and states that a value of the module is made of; of a local value, none."""
    if value is None or not value.is_global:
        return
    if value not in made:
        yield value.name
        return
    for inner in made[value].inputs:
        yield from sources(inner, made)
