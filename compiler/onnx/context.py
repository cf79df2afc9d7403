"""What lowering functions share: names of values, weights that are used, and what is computed once for all layers."""

from __future__ import annotations

from collections.abc import Callable
from operator import methodcaller

from onnx import TensorProto

from deepzig.artifacts.onnx_file import INPUT_IDS, MASK, PAST_LATENT, PRESENT_LATENT
from deepzig.ir import Value

from .emitter import ELEMENTS, Emitter
from .external import ExternalTensor

BATCH, SEQUENCE, PAST, TOTAL = "batch", "sequence", "past", "total"
"""Symbolic dimensions; the last is the sum of the two before it."""


class Context:
    """An export on its way.

    Attributes:
        emit: where nodes go.
        names: the ONNX name of each IR value that is known.
        tensors: weights in the order in which they are written.
        domain: of products with quantised matrices: empty for standard ops.
    """

    def __init__(self, states: tuple[Value, ...], domain: str) -> None:
        self.emit = Emitter()
        self.names: dict[Value, str] = {}
        self.tensors: dict[str, ExternalTensor] = {}
        self.domain = domain
        self._layers = {state: number for number, state in enumerate(states)}
        self._once: dict[object, str] = {}

    def use(self, value: Value | None) -> str:
        """The name of a value as f32, or as int64; an empty one if there is none."""
        if value is None:
            return ""
        if value.kind != "param":
            return self.names[value]
        name = self.stored(value)
        if value.type.dtype == "f32":
            return name
        return self.once(("f32", value), lambda: self.widened(name, f"{name}/f32"))

    def stored(self, weight: Value) -> str:
        """The name of a parameter of floats as it is stored, which it will be."""
        shape = tuple(map(int, weight.shape))
        pieces = methodcaller("pieces", weight)
        return self.store(ExternalTensor(weight.name, ELEMENTS[weight.type.dtype], shape, pieces))

    def store(self, tensor: ExternalTensor) -> str:
        """The name of a tensor, which will be written unless there is one of that name."""
        self.tensors.setdefault(tensor.name, tensor)
        return tensor.name

    def widened(self, name: str, out: str | None = None) -> str:
        """A float tensor as f32."""
        return self.emit.op("Cast", name, out=out, to=TensorProto.FLOAT)

    def once(self, key: object, make: Callable[[], str]) -> str:
        """What `make` names, made the first time that `key` is asked for."""
        if key not in self._once:
            self._once[key] = make()
        return self._once[key]

    def cache(self, state: Value) -> tuple[str, str, int]:
        """Names of a layer's cache before and after the call, and its element type."""
        number = self._layers[state]
        return PAST_LATENT % number, PRESENT_LATENT % number, ELEMENTS[state.type.dtype]

    def shape(self, *dims: int | str) -> str:
        """A shape for Reshape, of numbers and symbolic dimensions."""
        if all(isinstance(d, int) for d in dims):
            return self.emit.ints(*(int(d) for d in dims))
        return self.once(("shape", dims), lambda: self._shape(dims))

    def _shape(self, dims: tuple[int | str, ...]) -> str:
        parts = [self.dim(d) if isinstance(d, str) else self.emit.ints(d) for d in dims]
        return self.emit.op("Concat", *parts, axis=0, out=f"shape.{'.'.join(map(str, dims))}")

    def dim(self, symbol: str) -> str:
        """A symbolic dimension as a list of one integer."""
        source, axis = {BATCH: (INPUT_IDS, 0), SEQUENCE: (INPUT_IDS, 1), TOTAL: (MASK, 1)}[symbol]
        return self.once(
            ("dim", symbol),
            lambda: self.emit.op("Shape", source, start=axis, end=axis + 1, out=f"dim.{symbol}"),
        )
