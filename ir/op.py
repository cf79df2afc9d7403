"""How an op is declared: once, as a signature plus its numpy meaning.

    @op("x: f32[..., k], w: float[m, k], bias?: f32[m] -> f32[..., m]")
    def linear(x, w, bias=None):
        '''y = x W^T (+ bias).'''
        ...

The signature is the arity check and the shape rule; keyword-only arguments of the function are the attributes. Names in
shapes are bound by the inputs, attributes may be used as names too, and outputs may multiply or add them (`heads*v`).
`...` stands for any leading dimensions. Where that is not enough, `shape=` gives a function instead.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .records import FLOATS, Attr, Dim, TensorType

OPS: dict[str, Op] = {}
"""Every op by name."""

ShapeRule = Callable[[Sequence[TensorType | None], Mapping[str, Attr]], tuple[TensorType, ...]]


class ShapeError(ValueError):
    """Inputs that do not fit the signature of the op."""


@dataclass(frozen=True)
class Slot:
    """One input or output of a signature."""

    name: str
    dtype: str
    shape: tuple[str, ...] | None
    optional: bool = False


@dataclass(frozen=True, eq=False)
class Op:
    """A declared op. `meaning` takes arrays (None for absent optional inputs) and the attributes as keywords."""

    name: str
    signature: str
    doc: str
    inputs: tuple[Slot, ...]
    outputs: tuple[Slot, ...]
    attrs: Mapping[str, Any]
    meaning: Callable[..., Any]
    shape_rule: ShapeRule | None

    def infer(self, types: Sequence[TensorType | None], attrs: Mapping[str, Attr]) -> tuple[TensorType, ...]:
        """Output types for these inputs.

        Raises:
            ShapeError: wrong arity, attributes, element types or shapes.
        """
        self._check_attrs(attrs)
        if len(types) > len(self.inputs):
            raise ShapeError(f"{self.name} takes {len(self.inputs)} inputs, {len(types)} given")
        types = [*types, *[None] * (len(self.inputs) - len(types))]
        bound: dict[str, Dim] = {k: v for k, v in attrs.items() if isinstance(v, int)}
        lead: tuple[Dim, ...] | None = None
        for slot, type_ in zip(self.inputs, types, strict=True):
            if type_ is None:
                if not slot.optional:
                    raise ShapeError(f"{self.name} needs input {slot.name}")
                continue
            lead = self._bind(slot, type_, bound, lead)
        if self.shape_rule is not None:
            return self.shape_rule(types, attrs)
        return tuple(TensorType(s.dtype, self._resolve(s, bound, lead)) for s in self.outputs)

    def _check_attrs(self, attrs: Mapping[str, Attr]) -> None:
        if extra := attrs.keys() - self.attrs.keys():
            raise ShapeError(f"{self.name} has no attribute {sorted(extra)[0]}")
        if missing := [k for k, v in self.attrs.items() if v is inspect.Parameter.empty and k not in attrs]:
            raise ShapeError(f"{self.name} needs attribute {missing[0]}")

    def _bind(
        self, slot: Slot, type_: TensorType, bound: dict[str, Dim], lead: tuple[Dim, ...] | None
    ) -> tuple[Dim, ...] | None:
        fits = slot.dtype in (type_.dtype, "any") or (slot.dtype == "float" and type_.dtype in FLOATS)
        if not fits:
            raise ShapeError(f"{self.name}: {slot.name} must be {slot.dtype}, not {type_.dtype}")
        if slot.shape is None:
            return lead
        names, shape = slot.shape, type_.shape
        if names and names[0] == "...":
            names = names[1:]
            cut = len(shape) - len(names)
            if cut < 0 or (lead is not None and shape[:cut] != lead):
                raise ShapeError(f"{self.name}: {slot.name} is {type_}, leading dimensions {lead} expected")
            lead, shape = shape[:cut], shape[cut:]
        if len(names) != len(shape):
            raise ShapeError(f"{self.name}: {slot.name} is {type_}, {len(names)} dimensions expected")
        for name, dim in zip(names, shape, strict=True):
            if bound.setdefault(name, dim) != dim:
                raise ShapeError(f"{self.name}: {slot.name} is {type_}, but {name} is {bound[name]}")
        return lead

    def _resolve(self, slot: Slot, bound: Mapping[str, Dim], lead: tuple[Dim, ...] | None) -> tuple[Dim, ...]:
        shape: list[Dim] = []
        for expr in slot.shape or ():
            if expr == "...":
                shape.extend(lead or ())
                continue
            factors = [int(f) if f.isdigit() else bound[f] for f in expr.split("*")]
            if len(factors) == 1:
                shape.append(factors[0])
            elif all(isinstance(f, int) for f in factors):
                shape.append(_product([int(f) for f in factors]))
            else:
                shape.append("*".join(map(str, factors)))
        return tuple(shape)


def _product(factors: list[int]) -> int:
    result = 1
    for factor in factors:
        result *= factor
    return result


_SLOT = re.compile(r"(?:(\w+)(\?)?\s*:\s*)?(\w+)\s*(?:\[([^\]]*)\])?")


def _slots(text: str) -> tuple[Slot, ...]:
    slots = []
    for match in _SLOT.finditer(text):
        name, optional, dtype, shape = match.groups()
        dims = None if shape is None else tuple(d.strip() for d in shape.split(",") if d.strip())
        slots.append(Slot(name or "y", dtype, dims, optional is not None))
    return tuple(slots)


def op(signature: str, shape: ShapeRule | None = None) -> Callable[[Callable[..., Any]], Op]:
    """Declare the decorated numpy function as the op of that name."""

    def declare(meaning: Callable[..., Any]) -> Op:
        left, right = signature.split("->")
        parameters = inspect.signature(meaning).parameters.values()
        attrs = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
        name = meaning.__name__.rstrip("_")
        doc = inspect.getdoc(meaning) or ""
        OPS[name] = Op(name, signature, doc, _slots(left), _slots(right), attrs, meaning, shape)
        return OPS[name]

    return declare
