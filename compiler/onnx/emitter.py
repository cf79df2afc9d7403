"""Nodes, small constants and names of an ONNX graph in the making."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import GraphProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

OPSET = 27
"""The newest opset all of whose ops onnxruntime has: it loads 28, but without DequantizeLinear."""

ELEMENTS = {"f32": TensorProto.FLOAT, "f16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
"""Float types of the IR -> those of ONNX."""


class Emitter:
    """Collects nodes in execution order.

    Attributes:
        nodes: the nodes so far.
        constants: small tensors that stand in the model file itself.
        scope: what names that nobody chose begin with: the IR value that is being computed.
        origin: what nodes say of where they come from, as `metadata_props`.
    """

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, TensorProto] = {}
        self.scope = ""
        self.origin: Mapping[str, str] = {}
        self._serials: dict[str, int] = {}

    def op(self, kind: str, *inputs: str, out: str | None = None, domain: str = "", **attrs: Any) -> str:
        """Append a node with one output.

        Args:
            kind: the op.
            inputs: names; an empty one is an absent optional input.
            out: the output's name; one within `scope` if not given.
            domain: the op's domain.
            attrs: its attributes.

        Returns:
            The output's name.
        """
        return self.ops(kind, inputs, [out or self._fresh(kind)], domain, **attrs)[0]

    def ops(
        self, kind: str, inputs: Sequence[str], outs: Sequence[str], domain: str = "", **attrs: Any
    ) -> Sequence[str]:
        """Append a node with several outputs, whose names are given and returned."""
        node = helper.make_node(kind, inputs, outs, name=f"{outs[0]}/{kind}", domain=domain, **attrs)
        helper.set_metadata_props(node, dict(self.origin))
        self.nodes.append(node)
        return outs

    def split(self, x: str, sizes: Sequence[int], axis: int) -> Sequence[str]:
        """Consecutive parts of a dimension."""
        outs = [self._fresh("Split") for _ in sizes]
        return self.ops("Split", [x, self.ints(*sizes)], outs, axis=axis)

    def constant(self, value: npt.NDArray[Any]) -> str:
        """A small tensor; equal ones are one."""
        name = f"constant.{value.dtype}.{value.tolist()}"
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(value, name)
        return name

    def ints(self, *values: int) -> str:
        """A list of integers."""
        return self.constant(np.array(values, np.int64))

    def floats(self, *values: float) -> str:
        """A list of f32 numbers."""
        return self.constant(np.array(values, np.float32))

    def number(self, value: float) -> str:
        """An f32 scalar."""
        return self.constant(np.array(value, np.float32))

    def body(self, name: str) -> Emitter:
        """An emitter for a subgraph within `scope`; its constants are those of the whole model."""
        inner = Emitter()
        inner.constants, inner._serials = self.constants, self._serials
        inner.scope, inner.origin = f"{self.scope}/{name}", self.origin
        return inner

    def graph(self, name: str, inputs: Sequence[ValueInfoProto], outputs: Sequence[ValueInfoProto]) -> GraphProto:
        """The nodes as a subgraph."""
        return helper.make_graph(self.nodes, name, inputs, outputs)

    def _fresh(self, kind: str) -> str:
        stem = f"{self.scope}/{kind}"
        serial = self._serials[stem] = self._serials.get(stem, -1) + 1
        return f"{stem}.{serial}" if serial else stem


def typed(name: str, element: int, shape: Sequence[int | str | None]) -> ValueInfoProto:
    """A value of a graph's signature."""
    return helper.make_tensor_value_info(name, element, shape)
