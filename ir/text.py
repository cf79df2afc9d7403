"""The IR as text, and back: `show(parse(text)) == text`.

    param @norm.weight: f32[8]
    const @inv_freq: f32[2] = [1.0, 0.25]
    state @cache.0: bf16[pages, 64, 16]
    @w0: bf16[6, 8] = concat(@a, @b) {axis=0}

    graph decode(%tokens: i32[n]) {rows=4}:
      %0: f32[n, 8] = rms_norm(%x, @norm.weight) {eps=1e-06}  # models.definition:40, layer 3
      return %0

`@` names belong to the module, `%` names to one graph, `_` is an absent optional input.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from deepzig.errors import DeepZigError

from .op import OPS
from .records import NUMPY, Attr, Dim, Graph, Kind, Module, Node, TensorType, Value


def show(module: Module) -> str:
    """The module as text."""
    lines = []
    for value in module.params:
        if value.name in module.constants:
            data = ", ".join(repr(float(x)) for x in module.constants[value.name].ravel())
            lines.append(f"const {_typed(value)} = [{data}]")
        else:
            lines.append(f"param {_typed(value)}")
    lines += [f"state {_typed(value)}" for value in module.states]
    lines += [_show_node(node) for node in module.weights]
    for graph in module.graphs:
        lines += ["", show_graph(graph)]
    return "\n".join(lines).lstrip("\n") + "\n"


def show_graph(graph: Graph) -> str:
    """One graph as text."""
    head = f"graph {graph.name}({', '.join(map(_typed, graph.inputs))}){_show_attrs(graph.attrs)}:"
    body = [f"  {_show_node(node)}" for node in graph.nodes]
    return "\n".join([head, *body, f"  return {', '.join(map(str, graph.outputs))}"])


def _typed(value: Value) -> str:
    return f"{value}: {value.type}"


def _show_node(node: Node) -> str:
    inputs = ", ".join("_" if v is None else str(v) for v in node.inputs)
    notes = [node.where] * bool(node.where) + [f"layer {node.layer}"] * (node.layer is not None)
    comment = f"  # {', '.join(notes)}" if notes else ""
    return f"{', '.join(map(_typed, node.outputs))} = {node.op.name}({inputs}){_show_attrs(node.attrs)}{comment}"


def _show_attrs(attrs: Mapping[str, Attr]) -> str:
    if not attrs:
        return ""
    return f" {{{', '.join(f'{k}={v!r}' for k, v in sorted(attrs.items()))}}}"


_NAME = r"[@%][\w.\-]+"
_TYPE = r"\w+\[[^\]]*\]"
_DECLARE = re.compile(rf"(param|state|const) ({_NAME}): ({_TYPE})(?: = (\[.*\]))?$")
_GRAPH = re.compile(r"graph ([\w.]+)\((.*?)\)(?: \{(.*)\})?:$")
_NODE = re.compile(r"(.+?) = (\w+)\((.*?)\)(?: \{(.*?)\})?(?:  # (.*?)(?:, )?(?:layer (\d+))?)?$")
_VALUE = re.compile(rf"({_NAME})(?:: ({_TYPE}))?(?:, )?")
_ATTR = re.compile(r"(\w+)=((?:\([^)]*\)|'[^']*'|[^,])+)(?:, )?")


@dataclass
class _Parser:
    source: str
    line: int = 0
    text: str = ""
    values: dict[str, Value] = field(default_factory=dict)

    def fail(self, what: str, at: str = "") -> DeepZigError:
        column = max(self.text.find(at), 0) + 1 if at else 1
        return DeepZigError(what, f"{self.source}:{self.line}:{column}", "see deepzig.ir.text for the grammar")

    def type(self, text: str) -> TensorType:
        dtype, dims = text[:-1].split("[", 1)
        return TensorType(dtype, tuple(_dim(d.strip()) for d in dims.split(",") if d.strip()))

    def declare(self, name: str, type_: str | None, kind: Kind) -> Value:
        if type_ is None:
            raise self.fail(f"{name} needs a type", name)
        if name in self.values:
            raise self.fail(f"{name} is defined twice", name)
        self.values[name] = Value(name[1:], self.type(type_), kind)
        return self.values[name]

    def use(self, name: str) -> Value:
        if name not in self.values:
            raise self.fail(f"{name} is not defined", name)
        return self.values[name]

    def attrs(self, text: str | None) -> dict[str, Attr]:
        try:
            return {k: ast.literal_eval(v) for k, v in _ATTR.findall(text or "")}
        except (ValueError, SyntaxError):
            raise self.fail("an attribute is not a literal", text or "") from None

    def constant(self, value: Value, data: str) -> np.ndarray:
        try:
            shape = tuple(int(d) for d in value.shape)
            return np.array(ast.literal_eval(data), NUMPY[value.type.dtype]).reshape(shape)
        except (KeyError, ValueError, SyntaxError, TypeError):
            raise self.fail(f"the data are not {value.type}", data) from None

    def node(self, kind: Kind) -> Node:
        match = _NODE.match(self.text.strip())
        if match is None:
            raise self.fail("not a node")
        left, name, args, attrs, where, layer = match.groups()
        if name not in OPS:
            raise self.fail(f"no op {name}", name)
        inputs = tuple(None if a == "_" else self.use(a) for a in _split(args))
        outputs = tuple(self.declare(n, t or None, kind) for n, t in _VALUE.findall(left))
        number = None if layer is None else int(layer)
        return Node(OPS[name], inputs, self.attrs(attrs), outputs, where or "", number)


def parse(text: str, source: str = "<text>") -> Module:
    """The module that `text` shows.

    Raises:
        DeepZigError: with line and column of what is not understood, undefined or defined twice.
    """
    p = _Parser(source)
    declared: dict[str, list[Value]] = {"param": [], "state": [], "const": []}
    constants: dict[str, np.ndarray] = {}
    weights: list[Node] = []
    graphs: list[Graph] = []
    lines = list(enumerate(text.splitlines(), 1))
    while lines:
        p.line, p.text = lines.pop(0)
        if not p.text.strip():
            continue
        if match := _DECLARE.match(p.text):
            word, name, type_, data = match.groups()
            value = p.declare(name, type_, "state" if word == "state" else "param")
            declared["state" if word == "state" else "param"].append(value)
            if word == "const":
                constants[value.name] = p.constant(value, data or "")
        elif match := _GRAPH.match(p.text):
            graphs.append(_parse_graph(p, match, lines))
        elif p.text.startswith("@"):
            weights.append(p.node("param"))
        else:
            raise p.fail("neither a declaration nor a graph")
    return Module(tuple(declared["param"]), tuple(declared["state"]), tuple(graphs), constants, tuple(weights))


def _parse_graph(p: _Parser, head: re.Match[str], lines: list[tuple[int, str]]) -> Graph:
    outer = dict(p.values)
    inputs = tuple(p.declare(n, t or None, "input") for n, t in _VALUE.findall(head[2]))
    attrs = p.attrs(head[3])
    nodes: list[Node] = []
    while lines:
        p.line, p.text = lines.pop(0)
        body = p.text.strip()
        if body.startswith("return "):
            outputs = tuple(p.use(name) for name in _split(body[len("return ") :]))
            p.values = outer
            return Graph(head[1], inputs, tuple(nodes), outputs, attrs)
        nodes.append(p.node("local"))
    raise p.fail(f"graph {head[1]} has no return")


def _dim(text: str) -> Dim:
    return int(text) if text.isdigit() else text


def _split(text: str) -> Iterable[str]:
    return [part.strip() for part in text.split(",") if part.strip()]
