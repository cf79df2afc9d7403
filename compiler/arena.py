"""Where the values of entry points lie in memory, decided when the model is compiled."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from deepzig.artifacts.consistency import ITEM_BYTES
from deepzig.artifacts.machines import WASM_BYTES
from deepzig.errors import DeepZigError

from .plan import Plan, Tensor, versions

ALIGNMENT = 64
"""Bytes; kernels crash on less."""

LOGITS_BYTES = 64 << 20
"""Room for the logits of more rows than one of each sequence, which those who score texts or guess ahead ask for."""

Sizes = Mapping[str, int]
"""Of each named dimension of a call the value."""


@dataclass(frozen=True)
class Arena:
    """Memory for everything but weights and caches.

    Attributes:
        blocks: the sizes of its blocks.
        places: the block that a tensor lies in, and where it begins there. Outputs of entry points share their bytes
            with nothing, all else with what is not alive at the same time.
    """

    blocks: tuple[int, ...]
    places: Mapping[Tensor, tuple[int, int]]

    @property
    def bytes(self) -> int:
        """The size of all blocks."""
        return sum(self.blocks)


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
    """A tensor, its bytes, the op that makes it, and the first and the last launch while its bytes are its own."""

    tensor: Tensor
    size: int
    maker: str
    first: int
    last: int

    def meets(self, other: _Life) -> bool:
        return self.first <= other.last and other.first <= self.last


def with_logits(sizes: Sizes, vocabulary: int) -> Sizes:
    """The sizes with as many rows of logits as fit LOGITS_BYTES; not fewer than are asked for, or more than all."""
    return {**sizes, "r": max(sizes["r"], min(sizes["n"], LOGITS_BYTES // (4 * vocabulary)))}


def arena(plans: Sequence[Plan], sizes: Sizes, binding_bytes: int | None = None) -> Arena:
    """Places for the inputs, intermediate values and outputs of all plans.

    Args:
        plans: one for each entry point; they run one at a time.
        sizes: the greatest dimensions of a call.
        binding_bytes: the largest buffer that a kernel can be given, where what lives at the same time needs buffers of
            its own; None where all can lie in one block.

    Raises:
        DeepZigError: a value is larger than a buffer.
    """
    return _together(plans, sizes) if binding_bytes is None else _apart(plans, sizes, binding_bytes)


def _together(plans: Sequence[Plan], sizes: Sizes) -> Arena:
    """One block: the largest come first, each to the lowest place that is free while it lives."""
    offsets: dict[Tensor, int] = {}
    end = 0
    for tensor in (t for plan in plans for t in _outputs(plan)):
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
    return Arena((end,), {tensor: (0, offset) for tensor, offset in offsets.items()})


def _apart(plans: Sequence[Plan], sizes: Sizes, most: int) -> Arena:
    """Blocks of one tensor at a time: the largest come first, each to the block that fits it best of those free."""
    blocks: list[int] = []
    places: dict[Tensor, tuple[int, int]] = {}

    def put(life: _Life, plan: Plan, free: Sequence[int]) -> None:
        if life.size > most:
            what = f"{life.maker} in {plan.name} takes a buffer of {life.size} bytes, the device has {most}"
            raise DeepZigError(what, "--target", "choose a smaller --chunk, or tell the limits of the device")
        block = min(free, key=lambda b: (max(life.size - blocks[b], 0), blocks[b]), default=len(blocks))
        if block == len(blocks):
            blocks.append(0)
        blocks[block] = max(blocks[block], life.size)
        places[life.tensor] = (block, 0)

    for plan in plans:
        for tensor in _outputs(plan):
            put(_Life(tensor, bytes_of(tensor, sizes), "an output", 0, 0), plan, ())
    shared = len(blocks)
    for plan in plans:
        placed: list[_Life] = []
        for life in sorted(_lives(plan, sizes), key=lambda life: -life.size):
            taken = {places[other.tensor][0] for other in placed if life.meets(other)}
            put(life, plan, [block for block in range(shared, len(blocks)) if block not in taken])
            placed.append(life)
    return Arena(tuple(blocks), places)


def _lives(plan: Plan, sizes: Sizes) -> list[_Life]:
    """All that shares its bytes: inputs, and what launches make that is no output and no state."""
    apart = {*_outputs(plan), *plan.states, *plan.weights.values()}
    first_of = versions(plan)
    first = dict.fromkeys(plan.inputs, -1)
    last = dict(first)
    makers = dict.fromkeys(plan.inputs, "an input")
    for number, launch in enumerate(plan.launches):
        for tensor in () if launch.in_place else launch.outputs:
            first[tensor] = last[tensor] = number
            makers[tensor] = launch.op
        for tensor in launch.args:
            last[first_of.get(tensor, tensor)] = number
    return [_Life(t, bytes_of(t, sizes), makers[t], begin, last[t]) for t, begin in first.items() if t not in apart]


def _outputs(plan: Plan) -> list[Tensor]:
    """The tensors that outputs are, or are versions of."""
    first_of = versions(plan)
    return [first_of.get(tensor, tensor) for tensor in plan.outputs]


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
