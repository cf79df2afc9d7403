"""Checkpoints: tensors checked against what a model wants, and read one piece at a time.

The experts of a layer may be stored one by one (`mlp.experts.{e}.gate_proj.weight`, as DeepSeek publishes them) or
stacked (`mlp.experts.gate_up_proj`, as transformers holds them); here both are the one rank-3 tensor
`mlp.experts.gate_proj.weight`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from types import EllipsisType
from typing import Any

import numpy as np
import numpy.typing as npt

from deepzig.errors import DeepZigError
from deepzig.ir.fp8 import largest

from .files import MEND
from .storage import DTYPES, NUMPY, Weight

Array = npt.NDArray[Any]

STACKED = re.compile(r"(.*\.mlp\.experts)\.(gate|up|down)_proj\.weight$")
EXPERT = re.compile(r"(.*\.mlp\.experts)\.(\d+)\.(gate|up|down)_proj\.weight$")
STRAY = re.compile(r".*rotary_emb\.inv_freq$")
LAYER = re.compile(r"model\.layers\.(\d+)\.")
BLOCK = 1 << 18
"""Elements that are looked at together."""

OTHER_MODEL = "is config.json of another model?"


class Checkpoint:
    """The weights of a checkpoint.

    Args:
        weights: every weight, by the name that DeepSeek's or transformers' checkpoints give it.
        where: folder or file, for errors.
    """

    def __init__(self, weights: Mapping[str, Weight], where: str) -> None:
        self._weights = weights
        self._where = where
        self._experts: dict[str, dict[int, str]] = {}  # stacked name -> expert -> name
        for name in self._weights:
            if match := EXPERT.match(name):
                self._experts.setdefault(f"{match[1]}.{match[3]}_proj.weight", {})[int(match[2])] = name

    def names(self) -> list[str]:
        """The names of all weights, experts as stored."""
        return list(self._weights)

    def _fused(self, name: str) -> tuple[str, bool]:
        """Where a stack is in transformers' form, and whether it is half of that tensor."""
        match = STACKED.match(name)
        if match is None:
            return "", False
        return f"{match[1]}.{'down_proj' if match[2] == 'down' else 'gate_up_proj'}", match[2] != "down"

    def dtype(self, name: str) -> str:
        """The element type: f32, f16 or bf16."""
        stored = self._experts[name][0] if name in self._experts else name
        return self._weights[stored if stored in self._weights else self._fused(name)[0]].dtype

    def read(self, name: str) -> Array:
        """A stored tensor: float32, float16, or the bits of bf16 as uint16.

        Raises:
            DeepZigError: a value is not finite.
        """
        return self._read(name, ())

    def _read(self, name: str, index: tuple[int, ...]) -> Array:
        weight = self._weights[name]
        x = weight.read(index)
        flat = x.reshape(-1)
        for at in range(0, len(flat), BLOCK):
            part = flat[at : at + BLOCK]
            finite = part & 0x7F80 != 0x7F80 if weight.dtype == "bf16" else np.isfinite(part)
            _believe(finite, weight)
        return x

    def same(self, a: str, b: str) -> bool:
        """Whether two tensors that are stored by themselves hold the same values of the same type."""
        if self.dtype(a) != self.dtype(b) or self._weights[a].shape != self._weights[b].shape:
            return False
        left, right = (self.read(name).reshape(-1) for name in (a, b))
        return all(np.array_equal(left[i : i + BLOCK], right[i : i + BLOCK]) for i in range(0, len(left), BLOCK))

    def pieces(self, name: str) -> Iterator[Array]:
        """The slices of a rank-3 tensor along its first dimension, one at a time."""
        count = len(self._experts[name]) if name in self._experts else self._weights[self._stored(name)].shape[0]
        yield from (self.piece(name, i) for i in range(count))

    def piece(self, name: str, index: int) -> Array:
        """One slice of a tensor along its first dimension."""
        stored, place, part = self._place(name, index)
        return self._read(stored, place)[part]

    def fp8(self, name: str, index: int | None = None) -> Array | None:
        """A matrix, or one of a stack, as records of `deepzig.ir.fp8`; None if it is not stored as such numbers.

        Raises:
            DeepZigError: a value is not finite.
        """
        stored, place, part = (name, (), ...) if index is None else self._place(name, index)
        weight = self._weights[stored]
        if weight.fp8 is None:
            return None
        found = weight.fp8(place)[part]
        _believe(np.isfinite(largest(found)), weight)
        return found

    def _place(self, name: str, index: int) -> tuple[str, tuple[int, ...], slice | EllipsisType]:
        """Where one slice of a tensor is: a stored tensor, an index in it, and a part of what is there."""
        if name in self._experts:
            return self._experts[name][index], (), ...
        stored = self._stored(name)
        if stored == name or not self._fused(name)[1]:
            return stored, (index,), ...
        half = self._weights[stored].shape[1] // 2
        return stored, (index,), slice(half) if ".gate_proj" in name else slice(half, None)

    def _stored(self, name: str) -> str:
        return name if name in self._weights else self._fused(name)[0]

    def check(
        self,
        expected: Mapping[str, tuple[int, ...]],
        layers: int | None = None,
        mtp: Mapping[str, tuple[int, ...]] | None = None,
    ) -> None:
        """Check that the checkpoint holds just what a model wants.

        Multi-token prediction may be left out as a whole, as transformers does when it saves; and it is let be if the
        model has none of it.

        Args:
            expected: shape by name, experts stacked.
            layers: how many layers the model has; what lies beyond is multi-token prediction.
            mtp: its tensors, as `expected`.

        Raises:
            DeepZigError: a tensor is missing, of another shape, of a type that can't be read, or not wanted.
        """
        beyond = {name for name in self._weights if layers is not None and _layer(name) >= layers}
        wanted = {**expected, **(mtp or {})} if beyond else expected
        planned = {_layer(name) for name in mtp or ()}
        used: set[str] = set()
        for name, shape in wanted.items():
            parts = self._parts(name, shape)
            for part, want in parts.items():
                self._check_part(part, want)
            first = next(iter(parts))
            for part in parts:
                if self._weights[part].dtype != self._weights[first].dtype:
                    what = f"the experts of a layer differ in type, this is {self._weights[part].dtype}"
                    raise DeepZigError(what, self._weights[part].where, MEND)
            used.update(parts)
        for name in (n for n in self._weights if n not in used):
            let_be = name in beyond and _layer(name) not in planned
            tied = name == "lm_head.weight" and name not in expected
            if not (let_be or tied or STRAY.match(name)):
                raise DeepZigError("the model has no such tensor", self._weights[name].where, OTHER_MODEL)

    def _parts(self, name: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """The stored tensors that `name` is made of, with the shapes they must have."""
        if name in self._experts:
            experts = self._experts[name]
            if len(experts) > shape[0]:
                where = self._weights[experts[max(experts)]].where
                raise DeepZigError(f"there are {len(experts)} experts, not {shape[0]}", where, OTHER_MODEL)
            prefix, _, suffix = name.rpartition(".experts.")
            return {experts.get(e, f"{prefix}.experts.{e}.{suffix}"): shape[1:] for e in range(shape[0])}
        fused, halved = self._fused(name)
        if name not in self._weights and fused in self._weights:
            return {fused: (shape[0], 2 * shape[1], *shape[2:]) if halved else shape}
        return {name: shape}

    def _check_part(self, name: str, shape: tuple[int, ...]) -> None:
        if name not in self._weights:
            raise DeepZigError("a tensor is missing", f"{self._where}, tensor {name}", MEND)
        weight = self._weights[name]
        if weight.dtype not in NUMPY:
            hint = f"convert the checkpoint to one of {', '.join(DTYPES)}"
            raise DeepZigError(f"weights of type {weight.dtype} can't be read", weight.where, hint)
        if weight.shape != shape:
            raise DeepZigError(f"the shape is {list(weight.shape)}, not {list(shape)}", weight.where, OTHER_MODEL)


def _believe(finite: Array, weight: Weight) -> None:
    if not finite.all():
        raise DeepZigError("a weight is not a finite number", weight.where, MEND)


def _layer(name: str) -> int:
    """The layer that a tensor belongs to; -1 for none."""
    match = LAYER.match(name)
    return int(match[1]) if match else -1
