"""The kernels of an artifact: who calls them and how often, and which layers are alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice

from deepzig.artifacts.graphs import Graphs
from deepzig.artifacts.manifest import Build

EXPERTS = {"moe", "expert_linear"}
"""Ops of a mixture of experts."""

OUTSIDE = "outside of layers"


@dataclass(frozen=True)
class LayerKind:
    """Layers for which the code makes the same calls: what they are called, and their numbers."""

    name: str
    layers: tuple[int, ...]


@dataclass(frozen=True)
class Kernel:
    """A kernel.

    Attributes:
        symbol: its name in the code.
        op: what it computes, or is a part of.
        calls: entry point -> how often a call of it calls the kernel.
        kinds: kind of layer -> how often a layer of it calls the kernel, in all entry points together.
    """

    symbol: str
    op: str
    calls: Mapping[str, int]
    kinds: Mapping[str, int]


def layer_kinds(build: Build) -> tuple[LayerKind, ...]:
    """Layers grouped by the calls that they make, in order of their first layer."""
    made: dict[int, list[tuple[str, str, str]]] = {}
    for entry, calls in build.calls.items():
        for call in calls:
            if call.layer is not None:
                made.setdefault(call.layer, []).append((entry, call.op, call.kernel))
    alike: dict[tuple[tuple[str, str, str], ...], list[int]] = {}
    for layer in sorted(made):
        alike.setdefault(tuple(made[layer]), []).append(layer)
    names: Counter[str] = Counter()
    kinds = []
    for calls_made, layers in alike.items():
        entries, ops = {entry for entry, _, _ in calls_made}, {op for _, op, _ in calls_made}
        name = "draft" if entries == {"draft"} else "MoE" if ops & EXPERTS else "dense"
        names[name] += 1
        kinds.append(LayerKind(name if names[name] == 1 else f"{name} {names[name]}", tuple(layers)))
    return tuple(kinds)


def kernels_of(build: Build, kinds: tuple[LayerKind, ...]) -> tuple[Kernel, ...]:
    """Every kernel, in order of its first call."""
    kind_of = {layer: kind for kind in kinds for layer in kind.layers}
    ops: dict[str, str] = {}
    calls: dict[str, Counter[str]] = {}
    by_kind: dict[str, Counter[str]] = {}
    for entry, made in build.calls.items():
        for call in made:
            ops.setdefault(call.kernel, call.op)
            calls.setdefault(call.kernel, Counter())[entry] += 1
            kind = OUTSIDE if call.layer is None else kind_of[call.layer].name
            by_kind.setdefault(call.kernel, Counter())[kind] += 1
    sizes = {kind.name: len(kind.layers) for kind in kinds}
    return tuple(
        Kernel(
            symbol,
            op,
            dict(calls[symbol]),
            {kind: count // sizes.get(kind, 1) for kind, count in by_kind[symbol].items()},
        )
        for symbol, op in ops.items()
    )


def node_kernels(build: Build, graphs: Graphs) -> dict[str, dict[int, list[list[str]]]]:
    """The kernels of each node: entry point -> block after fusion -> of each of its nodes the symbols, in order.

    A node's calls end with the one that makes its values, by name; of blocks that several sections share, the first
    section tells.
    """
    found: dict[str, dict[int, list[list[str]]]] = {}
    for entry, graph in graphs.graphs.items():
        calls = build.calls.get(entry, ())
        makes = {name: number for number, call in enumerate(calls) for name in call.values if name}
        begin, blocks = 0, found.setdefault(entry, {})
        for section in graph.after.sections:
            names = iter(section.values)
            symbols = []
            for node in graphs.blocks[section.block]:
                made = [makes.get(name, -1) for name in islice(names, len(node.outputs))]
                end = max(max(made, default=-1) + 1, begin)
                symbols.append([call.kernel for call in calls[begin:end]])
                begin = end
            blocks.setdefault(section.block, symbols)
    return found


def ranges(numbers: tuple[int, ...]) -> str:
    """`0-2, 5` for 0, 1, 2, 5."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1][1:] = [number]
        else:
            parts.append([number])
    return ", ".join("-".join(map(str, part)) for part in parts)
