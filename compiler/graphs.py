"""The part graphs.json of an artifact: every graph before and after fusion, as data that a page can draw.

artifacts/FORMAT.md has the grammar. Layers that are alike are stored once: a stretch of nodes of one layer becomes a
block, in which values are numbered and the layer's number is written `*`; equal blocks are one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from deepzig.ir import Graph, Module, Node, Value

from .origins import origins, sources


def graphs_json(before: Module, after: Module) -> bytes:
    """The content of graphs.json.

    Args:
        before: the traced module.
        after: the same after all passes.
    """
    writer = _Writer({out: node for node in after.weights for out in node.outputs})
    graphs = {graph.name: writer.graph(before.graph(graph.name), graph, after) for graph in after.graphs}
    data = {"blocks": [json.loads(block) for block in writer.blocks], "graphs": graphs}
    return (json.dumps(data, ensure_ascii=False, separators=(",", ":")) + "\n").encode()


@dataclass
class _Writer:
    """Collects blocks: their text -> their number."""

    made: Mapping[Value, Node]
    blocks: dict[str, int] = field(default_factory=dict)

    def graph(self, before: Graph, after: Graph, module: Module) -> dict[str, Any]:
        """The entry of one graph."""
        old, new = dict(_sections(before)), dict(_sections(after))
        place = {node: (key, number) for key, nodes in old.items() for number, node in enumerate(nodes)}
        stands_for = origins(before, after, module.weights)
        replaces = {
            node: [place[n][1] for n in stands_for[node] if place[n][0] == key]
            for key, nodes in new.items()
            for node in nodes
        }
        return {
            "inputs": [[value.name, str(value.type)] for value in after.inputs],
            "before": self._side(before, old, {}),
            "after": self._side(after, new, replaces),
        }

    def _side(
        self, graph: Graph, sections: Mapping[tuple[int | None, int], list[Node]], replaces: Mapping[Node, list[int]]
    ) -> dict[str, Any]:
        written = [self._section(layer, nodes, replaces) for (layer, _), nodes in sections.items()]
        return {"sections": written, "outputs": [value.name for value in graph.outputs]}

    def _section(self, layer: int | None, nodes: list[Node], replaces: Mapping[Node, list[int]]) -> dict[str, Any]:
        values = {value: number for number, value in enumerate(out for node in nodes for out in node.outputs)}
        reads: dict[Value, int] = {}

        def operand(value: Value | None) -> Any:
            if value is None:
                return None
            if value in values:
                return values[value]
            if value.is_global:
                names = [_starred(name, layer) for name in dict.fromkeys(sources(value, self.made))]
                return {"params": names, "type": str(value.type)}
            return f"%{reads.setdefault(value, len(reads))}"

        block = [
            {
                "op": node.op.name,
                "inputs": [operand(value) for value in node.inputs],
                "outputs": [str(value.type) for value in node.outputs],
                "attrs": dict(node.attrs),
                "where": node.where,
                **({"replaces": replaces[node]} if node in replaces else {}),
            }
            for node in nodes
        ]
        number = self.blocks.setdefault(json.dumps(block), len(self.blocks))
        return {
            "layer": layer,
            "block": number,
            "reads": [value.name for value in reads],
            "values": [value.name for value in values],
        }


def _sections(graph: Graph) -> Iterator[tuple[tuple[int | None, int], list[Node]]]:
    """Stretches of nodes of one layer, by the layer and how many of it came before."""
    seen: dict[int | None, int] = {}
    for layer, nodes in groupby(graph.nodes, key=lambda node: node.layer):
        seen[layer] = seen.get(layer, -1) + 1
        yield (layer, seen[layer]), list(nodes)


def _starred(name: str, layer: int | None) -> str:
    """The name with `*` for the number of the layer."""
    return name if layer is None else re.sub(rf"(?<=\.){layer}(?=\.|$)", "*", name)
