"""What a compiled model takes of a machine's memory: to hold it, to read it for a token, and to run a call."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import tvm
from tvm import relax, tirx

from deepzig.artifacts.consistency import ITEM_BYTES
from deepzig.ir import Module, Node, Value
from deepzig.models.kinds import KINDS, kind_of
from deepzig.targets.base import Target

from .arena import Sizes, dimension
from .plan import Launch, Plan
from .trace import Bounds
from .weights import Packed

STACK_BYTES = 1024
"""What is smaller, a kernel has on its stack (TVM's kMaxStackAlloca)."""

def greatest(bounds: Bounds, positions: int) -> Sizes:
    """The greatest dimensions of a call, but that each sequence asks for the logits of one row only."""
    pages = -(-positions // bounds.page_size)
    return {"n": bounds.rows, "r": bounds.batch, "b": bounds.batch, "p": pages, "pages": bounds.batch * pages}


def memory_plan(
    values: Mapping[Target, int],
    plans_of: Mapping[Target, Sequence[Plan]],
    module: Module,
    sizes: Sizes,
) -> dict[str, int]:
    """What the manifest says of memory, beside the sum of the weights and the cache; FORMAT.md has the meanings.

    Args:
        values: of each target the bytes of values between kernels and of outputs.
        plans_of: the plans of each target, which agree on the weights.
        module: the fused module.
        sizes: the greatest dimensions of a call.
    """
    plans = next(iter(plans_of.values()))
    reads = active_weights(next(plan for plan in plans if plan.name == "decode"))
    works = [workspace(values[target], plans_of[target], sizes) for target in values]
    return {
        **{f"{kind}_bytes": size for kind, size in weights_by_kind(plans, module).items()},
        "active_bytes_per_token": reads.bytes,
        "active_params_per_token": reads.elements,
        "workspace_bytes": max(work.bytes for work in works),
        "workspace_bytes_per_thread": max(work.per_thread for work in works),
    }


def weights_by_kind(plans: Sequence[Plan], module: Module) -> dict[str, int]:
    """Stored bytes of the weights, by the kinds of `deepzig.models.kinds`; the sum is that of all weights.

    A weight that only the graph `draft` reads is of the kind `draft`. One that is made of parameters of several kinds,
    as the stack of routed and shared experts is, counts for each by its number of elements.
    """
    made = {out: node for node in module.weights for out in node.outputs}
    main = {w for plan in plans if plan.name != "draft" for w in plan.weights}
    total: dict[str, int] = dict.fromkeys(KINDS, 0)
    for weight in dict.fromkeys(w for plan in plans for w in plan.weights):
        size = stored_bytes(weight)
        shares = sum((_kinds(value, made) for value in weight.sources), Counter[str]())
        if weight not in main:
            shares = Counter(draft=1)
        for kind, count in shares.items():
            total[kind] += size * count // sum(shares.values())
    return total


def _kinds(value: Value, made: Mapping[Value, Node]) -> Counter[str]:
    """Of how many elements of each kind a parameter, or what is computed of parameters, is made."""
    node = made.get(value)
    if node is None:
        return Counter({kind_of(value.name): elements(value)})
    kinds = sum((_kinds(v, made) for v in node.inputs if v is not None), Counter[str]())
    # a part of a parameter has fewer elements than that: only what stands side by side is of several kinds
    return kinds if len(kinds) > 1 else Counter(dict.fromkeys(kinds, elements(value)))


def elements(value: Value) -> int:
    """The number of elements of a parameter, without padding."""
    return math.prod(map(int, value.shape))


def stored_bytes(weight: Packed) -> int:
    """The bytes of a weight in the artifact, padding included."""
    return ITEM_BYTES[weight.type.dtype] * math.prod(map(int, weight.type.shape))


@dataclass(frozen=True)
class Reads:
    """What a call for one row reads of the weights: bytes as they are stored, and elements without padding."""

    bytes: int
    elements: int


def active_weights(plan: Plan) -> Reads:
    """What one token makes a call with one row read of the weights.

    Of the experts those that are chosen and the shared ones, of the embeddings one row, of everything else all of it. A
    weight that two kernels read counts twice.
    """
    weight_of = {tensor: weight for weight, tensor in plan.weights.items()}
    size = count = Fraction()
    for launch in plan.launches:
        for weight in (weight_of[t] for t in launch.args if t in weight_of):
            share = _share(launch.node, weight)
            size += share * stored_bytes(weight)
            count += share * weight.part * sum(map(elements, weight.sources))
    return Reads(math.ceil(size), math.ceil(count))


def _share(node: Node, weight: Packed) -> Fraction:
    """The part of a weight that a node reads for one row."""
    stack = weight.sources[0]
    if node.op.name == "embed":
        return Fraction(1, int(stack.shape[0]))
    if node.op.name not in ("moe", "expert_linear"):
        return Fraction(1)
    ids = node.inputs[1 if node.op.name == "moe" else 2]
    assert ids is not None
    return Fraction(int(ids.shape[1]) + int(str(node.attrs.get("shared", 0))), int(stack.shape[0]))


@dataclass(frozen=True)
class Workspace:
    """Memory for intermediate results.

    Attributes:
        bytes: for all threads together.
        per_thread: what each thread of the kernels takes in addition.
    """

    bytes: int
    per_thread: int


def workspace(values: int, plans: Sequence[Plan], sizes: Sizes) -> Workspace:
    """The most memory for intermediate results that calls take whose dimensions are not above `sizes`.

    Counted are `values`, the bytes of values between kernels and of outputs, and what kernels allocate on the heap. Of
    this scratch memory the greatest counts, with all of a kernel's arrays as if they lived at once. Not counted are
    arguments: weights, caches and the caller's arrays.
    """
    scratch = [_scratch(launch, sizes) for plan in plans for launch in plan.launches]
    shared, own = (max((part[i] for part in scratch), default=0) for i in range(2))
    return Workspace(values + shared, own)


def pooled(lowered: tvm.IRModule, plans: Sequence[Plan], sizes: Sizes) -> int:
    """Bytes of the storage that TVM's static plan allots to values between kernels, and of outputs.

    TVM pools what is freed by its size: what entry points can use in turn counts once, for storages of equal size only.
    """
    planned = tvm.transform.Sequential([relax.transform.CallTIRRewrite(), relax.transform.StaticPlanBlockMemory()])(
        lowered
    )
    pool: Counter[int] = Counter()
    for plan in plans:
        pool |= Counter(_storages(planned[plan.name], sizes))
    return sum(size * number for size, number in pool.items())


def _storages(function: Any, sizes: Sizes) -> Iterator[int]:
    """Bytes of each block that a planned function allocates."""
    for block in function.body.blocks:
        for binding in block.bindings:
            name = str(getattr(getattr(binding.value, "op", None), "name", ""))
            if name == "relax.memory.alloc_storage":
                yield _count(binding.value.args[0].values, sizes)
            elif name == "relax.builtin.alloc_tensor":
                shape, dtype = binding.value.args[:2]
                yield _count(shape.values, sizes) * tvm.DataType(str(dtype.value)).itemsize


def _count(shape: Sequence[Any], sizes: Sizes) -> int:
    """The product of the dimensions, the named ones at their most."""
    return math.prod(_bound(extent, sizes) for extent in shape)


def _bound(extent: Any, sizes: Sizes) -> int:
    """What an expression of dimensions is when each has its greatest value."""
    if isinstance(extent, int | tirx.IntImm):
        return int(extent)
    if isinstance(extent, tirx.Var):
        return sizes[extent.name]
    combine = {"Add": lambda a, b: a + b, "Mul": lambda a, b: a * b, "FloorDiv": lambda a, b: a // b}
    return combine[type(extent).__name__](_bound(extent.a, sizes), _bound(extent.b, sizes))


def _scratch(launch: Launch, sizes: Sizes) -> tuple[int, int]:
    """Bytes that a kernel allocates on the heap: for all threads, and for each of them."""
    kernel = launch.kernel
    own: dict[str, int] = {}
    for parameter, argument in zip(kernel.params, (*launch.args, *launch.outputs), strict=False):
        for extent, dim in zip(parameter.shape, argument.type.shape, strict=True):
            if isinstance(extent, tirx.Var):
                own[extent.name] = dimension(dim, sizes)
    total = [0, 0]
    for buffer, in_thread in _allocations(kernel.body, False):
        size = _count(buffer.shape, own) * tvm.DataType(str(buffer.dtype)).itemsize
        total[in_thread] += size if size >= STACK_BYTES else 0
    return total[0], total[1]


def _allocations(statement: Any, in_thread: bool) -> Iterator[tuple[Any, bool]]:
    """Every buffer that a statement allocates on the heap or stack, and whether each thread has one of its own."""
    allocated: list[Any] = [statement.buffer] if isinstance(statement, tirx.AllocBuffer) else []
    for buffer in (*allocated, *getattr(statement, "alloc_buffers", ())):
        if buffer.scope() == "global":  # other scopes are memory of a GPU's blocks
            yield buffer, in_thread
    in_thread |= isinstance(statement, tirx.For) and statement.kind == tirx.ForKind.PARALLEL
    inner = [getattr(statement, name, None) for name in ("block", "init", "body", "then_case", "else_case")]
    for child in (*inner, *getattr(statement, "seq", ())):
        if child is not None:
            yield from _allocations(child, in_thread)
