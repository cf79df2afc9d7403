"""The one rewriter: a pattern in the IR's own notation, and a function that builds what replaces it.

    rewrite(graph, '''
        %g = linear(%x, %gate)
        %u = linear(%x, %up)
        %s = silu(%g)
        %y = mul(%s, %u)
    ''', lambda b, m: b.gated_proj(m["x"], m["gate"], m["up"]))

Names in the pattern stand for any value (the same name, the same value), `_` for an absent input, `name=?key` for any
attribute. The outputs of the last line are replaced, or the values of a closing `return %a, %b`. Every other value that
the pattern defines must have no use outside the match: nothing is ever computed twice.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from .builder import Builder
from .records import Graph, Node, Value

Match = Mapping[str, Any]
"""What a pattern's names (values) and `?keys` (attributes) are bound to."""

Replace = Callable[[Builder, Match], Value | tuple[Value, ...] | None]
"""Builds the replacement, of the same type; None declines the match."""


@dataclass
class Budget:
    """How many rewrites may still be made; `--fuse-limit` bisects a wrong one."""

    left: int | None = None


_budget: ContextVar[Budget | None] = ContextVar("budget", default=None)


@contextmanager
def fuse_limit(limit: int | None) -> Iterator[Budget]:
    """Within this context at most `limit` rewrites are made."""
    token = _budget.set(Budget(limit))
    try:
        yield _budget.get() or Budget()
    finally:
        _budget.reset(token)


def _spend() -> bool:
    budget = _budget.get()
    if budget is None or budget.left is None:
        return True
    budget.left -= 1
    return budget.left >= 0


@dataclass(frozen=True)
class _Line:
    """One line of a pattern."""

    outputs: tuple[str, ...]
    op: str
    inputs: tuple[str, ...]
    attrs: tuple[tuple[str, str], ...]


_LINE = re.compile(r"(.+?) = (\w+)\((.*?)\)(?: \{(.*)\})?$")


@cache
def _pattern(text: str) -> tuple[tuple[_Line, ...], tuple[str, ...]]:
    lines: list[_Line] = []
    for raw in filter(None, map(str.strip, text.splitlines())):
        if raw.startswith("return "):
            return tuple(lines), tuple(n.strip().lstrip("%") for n in raw[len("return ") :].split(","))
        match = _LINE.match(raw)
        assert match, f"not a pattern line: {raw}"
        left, op, args, attrs = match.groups()
        names = [tuple(n.strip().lstrip("%") for n in part.split(",") if n.strip()) for part in (left, args)]
        pairs = tuple((k, v) for k, v in re.findall(r"(\w+)=(\??[\w.\-]+)", attrs or ""))
        lines.append(_Line(names[0], op, names[1], pairs))
    return tuple(lines), lines[-1].outputs


class _Index:
    """Who makes and who uses each value."""

    def __init__(self, graph: Graph) -> None:
        self.producer = graph.producers()
        self.users: dict[Value, list[Node]] = defaultdict(list)
        for node in graph.nodes:
            for value in {v for v in node.inputs if v is not None}:
                self.users[value].append(node)
        self.outputs = set(graph.outputs)

    def candidates(self, line: _Line, bound: Mapping[str, Any]) -> list[Node]:
        """Nodes that `line` may match, given what is bound already."""
        for name in line.outputs:
            if name in bound:
                node = self.producer.get(bound[name])
                return [node] if node else []
        users = [self.users[bound[name]] for name in line.inputs if name in bound and bound[name] is not None]
        return min(users, key=len) if users else []


def _unify(line: _Line, node: Node, bound: Mapping[str, Any]) -> dict[str, Any] | None:
    if node.op.name != line.op or len(node.outputs) != len(line.outputs):
        return None
    new = dict(bound)
    inputs = list(node.inputs) + [None] * (len(line.inputs) - len(node.inputs))
    if len(inputs) != len(line.inputs):
        return None
    for name, value in (*zip(line.inputs, inputs, strict=True), *zip(line.outputs, node.outputs, strict=True)):
        if name == "_":
            if value is not None:
                return None
        elif name.endswith("?"):
            new[name[:-1]] = value
        elif value is None or new.setdefault(name, value) is not value:
            return None
    for key, want in line.attrs:
        have = node.attrs.get(key, node.op.attrs.get(key))
        if want.startswith("?"):
            if new.setdefault(want[1:], have) != have:
                return None
        elif repr(have) != want:
            return None
    return new


def _match(lines: tuple[_Line, ...], root: Node, index: _Index) -> tuple[dict[str, Any], list[Node]] | None:
    def search(
        todo: tuple[_Line, ...], bound: dict[str, Any], nodes: list[Node]
    ) -> tuple[dict[str, Any], list[Node]] | None:
        if not todo:
            return bound, nodes
        # the line with the fewest candidates first keeps the search from wandering
        line = min(todo, key=lambda x: len(index.candidates(x, bound)) or 1 << 30)
        rest = tuple(x for x in todo if x is not line)
        for node in index.candidates(line, bound):
            if node in nodes:
                continue
            new = _unify(line, node, bound)
            if new is not None and (found := search(rest, new, [*nodes, node])):
                return found
        return None

    first = _unify(lines[-1], root, {})
    return search(lines[:-1], first, [root]) if first is not None else None


def _escapes(nodes: list[Node], results: list[Value], index: _Index) -> bool:
    inner = {out for node in nodes for out in node.outputs}.difference(results)
    return any(v in index.outputs or any(u not in nodes for u in index.users[v]) for v in inner)


def rewrite(graph: Graph, pattern: str, build: Replace) -> Graph:
    """Apply one rule wherever it matches, until it matches no more.

    Returns:
        The new graph, or `graph` itself when nothing matched.

    Raises:
        TypeError: the replacement has another type than what it replaces.
    """
    while True:
        swept = _sweep(graph, pattern, build)
        if swept is graph:
            return graph
        graph = swept


def _sweep(graph: Graph, pattern: str, build: Replace) -> Graph:
    """Rewrite all matches that do not overlap."""
    lines, names = _pattern(pattern)
    index = _Index(graph)
    gone: set[Node] = set()
    swap: dict[Value, Value] = {}
    new: dict[Node, list[Node]] = {}
    for node in graph.nodes:
        if node.op.name != lines[-1].op or (found := _match(lines, node, index)) is None:
            continue
        bound, matched = found
        replaced = [bound[name] for name in names]
        if gone.intersection(matched) or _escapes(matched, replaced, index):
            continue
        builder = Builder(prefix=f"{node.outputs[0].name}.", where=node.where, layer=node.layer)
        result = build(builder, bound)
        if result is None:
            continue
        if not _spend():
            break
        results = result if isinstance(result, tuple) else (result,)
        for before, after in zip(replaced, results, strict=True):
            if before.type != after.type:
                raise TypeError(f"{before} is {before.type}, its replacement {after.type} ({node.where})")
            swap[before] = after
        first = next(n for n in graph.nodes if n in matched and set(n.outputs).intersection(replaced))
        new[first] = builder.nodes
        gone.update(matched)
    return _splice(graph, gone, new, swap) if gone else graph


def _splice(graph: Graph, gone: set[Node], new: Mapping[Node, list[Node]], swap: Mapping[Value, Value]) -> Graph:
    nodes: list[Node] = []
    for old in graph.nodes:
        for node in new.get(old, [] if old in gone else [old]):
            inputs = tuple(None if v is None else swap.get(v, v) for v in node.inputs)
            nodes.append(node if inputs == node.inputs else replace(node, inputs=inputs))
    return replace(graph, nodes=tuple(nodes), outputs=tuple(swap.get(v, v) for v in graph.outputs))


def eliminate_dead(graph: Graph) -> Graph:
    """Drop nodes whose outputs nobody uses."""
    live = set(graph.outputs)
    kept = []
    for node in reversed(graph.nodes):
        if any(out in live for out in node.outputs):
            kept.append(node)
            live.update(v for v in node.inputs if v is not None)
    return graph if len(kept) == len(graph.nodes) else replace(graph, nodes=tuple(reversed(kept)))
