"""Building a graph op by op, with shapes checked at once and errors that name the asking line."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from deepzig.errors import DeepZigError

from .op import OPS, ShapeError
from .records import Attr, Dim, Graph, Kind, Module, Node, TensorType, Value


class Builder:
    """Nodes in the making. Every op is a method: `b.linear(x, w)`; ops with several outputs return a tuple."""

    def __init__(self, prefix: str = "", where: str | None = None, layer: int | None = None) -> None:
        self.nodes: list[Node] = []
        self.inputs: list[Value] = []
        self._prefix = prefix
        self._where = where
        self._layer = layer

    @contextmanager
    def in_layer(self, number: int) -> Iterator[None]:
        """Nodes made within belong to this layer of the model."""
        outer, self._layer = self._layer, number
        try:
            yield
        finally:
            self._layer = outer

    def input(self, name: str, dtype: str, shape: tuple[Dim, ...]) -> Value:
        """A new graph input."""
        value = Value(name, TensorType(dtype, shape), "input")
        self.inputs.append(value)
        return value

    def graph(self, name: str, outputs: tuple[Value, ...], attrs: Mapping[str, Attr]) -> Graph:
        """The finished graph."""
        return Graph(name, tuple(self.inputs), tuple(self.nodes), outputs, attrs)

    def emit(
        self, name: str, inputs: tuple[Value | None, ...], attrs: Mapping[str, Attr], where: str, kind: Kind = "local"
    ) -> tuple[Value, ...]:
        """Append a node.

        Raises:
            DeepZigError: the inputs do not fit the op; `where` is the line of the definition.
        """
        op = OPS[name]
        while inputs and inputs[-1] is None:
            inputs = inputs[:-1]
        try:
            types = op.infer([v.type if v else None for v in inputs], attrs)
        except ShapeError as error:
            raise DeepZigError(str(error), where, f"check the arguments of {name}: {op.signature}") from None
        serial = len(self.nodes)
        names = [
            f"{self._prefix}{serial}" if len(types) == 1 else f"{self._prefix}{serial}.{i}" for i in range(len(types))
        ]
        outputs = tuple(Value(n, t, kind) for n, t in zip(names, types, strict=True))
        self.nodes.append(Node(op, inputs, dict(attrs), outputs, where, self._layer))
        return outputs

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """The op called `name` (or `name` without a trailing underscore) as a function."""
        op_name = name.rstrip("_")
        if op_name not in OPS:
            raise AttributeError(f"no op {op_name!r}")

        def apply(*inputs: Value | None, **attrs: Attr) -> Value | tuple[Value, ...]:
            outputs = self.emit(op_name, inputs, attrs, self._where or _caller())
            return outputs[0] if len(outputs) == 1 else outputs

        return apply


def _caller() -> str:
    frame = sys._getframe(2)
    return f"{frame.f_globals.get('__name__', '?')}:{frame.f_lineno}"


class ModuleBuilder:
    """The parameters and states that the graphs of one module share.

    Args:
        weight_dtype: how matrices are stored (`f32`, `bf16`, `f16`).
        quantized: name of a matrix -> how it is stored instead (`q8`, `q4`, `fp8`), if it is.
        cache_dtype: how caches are stored (`f32`, `bf16`, `f16`, `q8`); None: as matrices.
    """

    def __init__(
        self,
        weight_dtype: str,
        quantized: Callable[[str], str | None] = lambda name: None,
        cache_dtype: str | None = None,
    ) -> None:
        self.weight_dtype = weight_dtype
        self._cache_dtype = cache_dtype or weight_dtype
        self._quantized = quantized
        self._values: dict[str, Value] = {}
        self._constants: dict[str, np.ndarray] = {}

    def _declare(self, name: str, type_: TensorType, kind: Kind) -> Value:
        value = self._values.setdefault(name, Value(name, type_, kind))
        assert value.type == type_, f"{name} is {value.type} and {type_}"
        return value

    def matrix(self, name: str, *shape: int) -> Value:
        """A parameter in the weight type, or quantised."""
        return self._declare(name, TensorType(self._quantized(name) or self.weight_dtype, shape), "param")

    def vector(self, name: str, *shape: int) -> Value:
        """A parameter that is always kept in f32: norms, biases, the router."""
        return self._declare(name, TensorType("f32", shape), "param")

    def constant(self, name: str, data: np.ndarray) -> Value:
        """An f32 parameter that follows from the config."""
        self._constants[name] = data.astype(np.float32)
        return self._declare(name, TensorType("f32", data.shape), "param")

    def state(self, name: str, *shape: Dim) -> Value:
        """A cache."""
        return self._declare(name, TensorType(self._cache_dtype, shape), "state")

    def module(self, graphs: tuple[Graph, ...]) -> Module:
        """The module over these graphs."""
        values = self._values.values()
        params = tuple(v for v in values if v.kind == "param")
        return Module(params, tuple(v for v in values if v.kind == "state"), graphs, self._constants)
