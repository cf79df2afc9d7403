"""Where the values of entry points lie in one block of memory, decided when the model is compiled."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from deepzig.artifacts.consistency import ITEM_BYTES
from deepzig.artifacts.machines import WASM_BYTES
from deepzig.errors import DeepZigError

from .plan import Plan, Tensor

ALIGNMENT = 64
"""Bytes; kernels crash on less."""

LOGITS_BYTES = 64 << 20
"""Room for the logits of more rows than one of each sequence, which those who score texts or guess ahead ask for."""

Sizes = Mapping[str, int]
"""Of each named dimension of a call the value."""


@dataclass(frozen=True)
class Arena:
    """A block of memory for everything but weights and caches.

    Attributes:
        bytes: its size.
        offsets: where a tensor begins. Outputs of entry points share their bytes with nothing, all else with what is
            not alive at the same time.
    """

    bytes: int
    offsets: Mapping[Tensor, int]


def check_fits(size: int) -> None:
    """Refuse weights and values that are more than addresses of 32 bits reach; caches come on top of them.

    Raises:
        DeepZigError: they are.
    """
    if size >= WASM_BYTES:
        what = f"weights and values take {size / 2**30:.1f} GiB, and the target's memory has 4 GiB"
        raise DeepZigError(what, "--target", "quantise the model with --quant q4, or choose another target")


@dataclass(frozen=True)
class _Life:
    """A tensor, its bytes, and the numbers of the first and the last launch between which its bytes are its own."""

    tensor: Tensor
    size: int
    first: int
    last: int

    def meets(self, other: _Life) -> bool:
        return self.first <= other.last and other.first <= self.last


def with_logits(sizes: Sizes, vocabulary: int) -> Sizes:
    """The sizes with as many rows of logits as fit LOGITS_BYTES; not fewer than are asked for, or more than all."""
    return {**sizes, "r": max(sizes["r"], min(sizes["n"], LOGITS_BYTES // (4 * vocabulary)))}


def arena(plans: Sequence[Plan], sizes: Sizes) -> Arena:
    """Places for the inputs, intermediate values and outputs of all plans.

    The largest come first, each to the lowest place that is free while it lives.

    Args:
        plans: one for each entry point; they run one at a time.
        sizes: the greatest dimensions of a call.
    """
    offsets: dict[Tensor, int] = {}
    end = 0
    for tensor in (t for plan in plans for t in plan.outputs):
        offsets[tensor] = end
        end += bytes_of(tensor, sizes)
    shared = end
    for plan in plans:
        placed: list[_Life] = []
        for life in sorted(_lives(plan, sizes), key=lambda life: -life.size):
            at = shared
            for other in sorted((o for o in placed if life.meets(o)), key=lambda o: offsets[o.tensor]):
                if at + life.size <= offsets[other.tensor]:
                    break
                at = max(at, offsets[other.tensor] + other.size)
            offsets[life.tensor] = at
            placed.append(life)
            end = max(end, at + life.size)
    return Arena(end, offsets)


def _lives(plan: Plan, sizes: Sizes) -> list[_Life]:
    """All that shares its bytes: inputs, and what launches make that is no output and no state."""
    apart = {*plan.outputs, *plan.states, *plan.weights.values()}
    first = dict.fromkeys(plan.inputs, -1)
    last = dict(first)
    for number, launch in enumerate(plan.launches):
        if launch.in_place:  # a new version of a state, where that lies
            apart.update(launch.outputs)
        for tensor in launch.outputs:
            first[tensor] = last[tensor] = number
        for tensor in launch.args:
            last[tensor] = number
    return [_Life(t, bytes_of(t, sizes), begin, last[t]) for t, begin in first.items() if t not in apart]


def bytes_of(tensor: Tensor, sizes: Sizes) -> int:
    """The bytes of a tensor at its largest, whole lines of the cache."""
    count = math.prod(dimension(dim, sizes) for dim in tensor.type.shape)
    return -(-count * ITEM_BYTES[tensor.type.dtype] // ALIGNMENT) * ALIGNMENT


def dimension(dim: int | str, sizes: Sizes) -> int:
    """A dimension of the IR, such as 7, `n` or `p*64`, at its most."""
    if isinstance(dim, int):
        return dim
    name, *factors = dim.split("*")
    return sizes[name] * math.prod(map(int, factors))
