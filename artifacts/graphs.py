"""The part graphs.json: a model's graphs before and after fusion, read with suspicion; FORMAT.md has the grammar."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepzig.errors import DeepZigError

from .checks import MEND
from .manifest import Manifest
from .reader import read_part

GRAPHS = "graphs.json"
"""The name of the part."""

MAX_BYTES = 64 << 20
"""A model of 61 layers has a few hundred thousand."""


@dataclass(frozen=True)
class Params:
    """An operand that belongs to the module: parameters or a cache, `*` for the layer's number; its type."""

    params: tuple[str, ...]
    type: str


Operand = int | str | Params | None
"""A value of the block by its number, one that the section reads (`%` and its number), or none."""


@dataclass(frozen=True)
class Node:
    """A node of a block.

    Attributes:
        op: its op.
        inputs: its operands.
        outputs: types of what it makes.
        attrs: its attributes.
        where: the line of the model definition.
        replaces: numbers of the nodes that it stands for, in the section before fusion; none before fusion.
    """

    op: str
    inputs: tuple[Operand, ...]
    outputs: tuple[str, ...]
    attrs: Mapping[str, Any]
    where: str
    replaces: tuple[int, ...]


Block = tuple[Node, ...]


@dataclass(frozen=True)
class Section:
    """A stretch of nodes of one layer: its number, its block, and the names of what it reads and makes."""

    layer: int | None
    block: int
    reads: tuple[str, ...]
    values: tuple[str, ...]


@dataclass(frozen=True)
class Side:
    """A graph at one moment of the compilation."""

    sections: tuple[Section, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Graph:
    """An entry point before and after fusion; inputs are names and types."""

    inputs: tuple[tuple[str, str], ...]
    before: Side
    after: Side


@dataclass(frozen=True)
class Graphs:
    """All graphs, over one list of blocks."""

    blocks: tuple[Block, ...]
    graphs: Mapping[str, Graph]


def read_graphs(path: Path, manifest: Manifest) -> Graphs | None:
    """The graphs of the artifact in the folder `path`; none if it does not carry any.

    Raises:
        DeepZigError: the part is missing, was changed, or can't be understood.
    """
    if GRAPHS not in manifest.files:
        return None
    where = str(path / GRAPHS)
    part = read_part(path, manifest, GRAPHS, MAX_BYTES)
    try:
        data = json.loads(part)
    except (ValueError, RecursionError):
        raise DeepZigError("the graphs are not JSON", where, MEND) from None
    try:
        return _graphs(data)
    except (LookupError, TypeError, ValueError, AttributeError):
        raise DeepZigError("the graphs can't be understood", where, MEND) from None


def _graphs(data: Any) -> Graphs:
    """Any wrong value raises one of the errors that `read_graphs` expects."""
    blocks = tuple(tuple(map(_node, _listed(block))) for block in _listed(data["blocks"]))
    for block in blocks:
        _check_block(block)
    graphs = {}
    for name, entry in data["graphs"].items():
        before, after = (_side(entry[moment], blocks) for moment in ("before", "after"))
        inputs = tuple((_text(i[0]), _text(i[1])) for i in _listed(entry["inputs"]))
        graphs[name] = Graph(inputs, before, after)
    return Graphs(blocks, graphs)


def _node(data: Any) -> Node:
    return Node(
        _text(data["op"]),
        tuple(map(_operand, _listed(data["inputs"]))),
        _texts(data["outputs"]),
        {name: _attribute(value) for name, value in data["attrs"].items()},
        _text(data["where"]),
        tuple(map(_count, _listed(data.get("replaces", [])))),
    )


def _attribute(data: Any) -> Any:
    many = data if isinstance(data, list) else [data]
    if not all(isinstance(v, str | int) or (isinstance(v, float) and math.isfinite(v)) for v in many):
        raise TypeError("not an attribute")
    return data


def _operand(data: Any) -> Operand:
    if isinstance(data, dict):
        return Params(_texts(data["params"]), _text(data["type"]))
    if isinstance(data, str):
        _count(int(data.removeprefix("%")))
        return f"%{int(data.removeprefix('%'))}"
    return None if data is None else _count(data)


def _check_block(block: Block) -> None:
    made = 0
    for node in block:
        if any(isinstance(v, int) and v >= made for v in node.inputs):
            raise ValueError("a value is read before it is made")
        made += len(node.outputs)


def _side(data: Any, blocks: tuple[Block, ...]) -> Side:
    sections = []
    for entry in _listed(data["sections"]):
        layer = None if entry["layer"] is None else _count(entry["layer"])
        section = Section(layer, _count(entry["block"]), _texts(entry["reads"]), _texts(entry["values"]))
        block = blocks[section.block]
        reads = [int(v[1:]) for node in block for v in node.inputs if isinstance(v, str)]
        if max(reads, default=-1) >= len(section.reads) or sum(len(n.outputs) for n in block) != len(section.values):
            raise ValueError("a section does not fit its block")
        sections.append(section)
    return Side(tuple(sections), _texts(data["outputs"]))


def _listed(data: Any) -> list[Any]:
    if not isinstance(data, list):
        raise TypeError("not a list")
    return data


def _text(data: Any) -> str:
    if not isinstance(data, str):
        raise TypeError("not a text")
    return data


def _texts(data: Any) -> tuple[str, ...]:
    return tuple(map(_text, _listed(data)))


def _count(data: Any) -> int:
    if type(data) is not int or data < 0:
        raise TypeError("not a whole number")
    return data
