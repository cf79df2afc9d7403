"""Recording self-check vectors: the fused graphs run by the meanings of their ops, one op at a time.

Nothing here calls a kernel, so a wrong kernel can't record its own answer. What an op reads of other ops is noise: no
op depends on another then, and of a large model a few layers can be recorded without the rest. Of the parameters, those
of one layer are in memory at most, large matrices a block of rows and stacks of experts one expert at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from deepzig.artifacts.selfcheck import CheckedCall, Choice, Draw, Noise, SelfCheck, Sketch
from deepzig.errors import DeepZigError
from deepzig.ir import Graph, Module, Node, TensorType, Value
from deepzig.ir.fp8 import FP8, values_fp8
from deepzig.ir.interpret import round_to
from deepzig.ir.quantize import QUANTIZED, QuantizedMatrix

from .scenario import Inputs, pages_of, scenario
from .trace import Bounds
from .weights import WeightSource, as_f32

Array = npt.NDArray[Any]
Reader = Callable[[Array, TensorType], Any]
"""A parameter of some type, or a piece of one, as it is stored -> as ops take it."""

BUDGET = 600_000_000
"""Parameters that are read for the recorded layers, together; the first of each kind and the last always are."""
BLOCK_ROWS = 4096
"""Rows of a matrix that are widened to f32 at once."""
DOUBT, TRIALS = 3e-5, 16
"""A choice hangs on a rounding if it changes when its input is disturbed by so much, relative to it, in one of so many
trials; the sums that decide it are 1e-6 off at most."""
SMALL = 1 / 16
"""Scale of noise that is read by a norm: small enough for its epsilon to show."""

CHOICES: Mapping[str, Callable[[Node], int]] = {
    "router": lambda node: int(node.inputs[1].shape[0]) if node.inputs[1] else 0,
    "topk": lambda node: int(node.inputs[0].shape[-1]) if node.inputs[0] else 0,
}
"""Op that chooses -> among how many."""

MASKS = ("mask_groups",)
"""Ops whose values are infinite by design; they have no norm, and what reads them is checked."""
EXPERTS = ("moe", "expert_linear")
"""Ops that read the chosen slices of a stack."""


class LazyStack:
    """A parameter whose slices, rows of a matrix or matrices of a stack, are read when they are asked for.

    Args:
        source: where from.
        value: the parameter.
        read: what makes of it, or of a slice, what ops take.
    """

    def __init__(self, source: WeightSource, value: Value, read: Reader) -> None:
        self.shape = tuple(map(int, value.shape))
        self._source, self._value, self._read = source, value, read
        self._stored: Array | None = None

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> Any:
        """One slice, or those at an array of indices."""
        if isinstance(index, np.ndarray):
            return np.stack([self[i] for i in index])
        return self._read(self._source.piece(self._value, int(index)), self._value.type)

    @property
    def T(self) -> _Transposed:  # noqa: N802 - numpy's name
        """A matrix's transpose, to multiply by; the matrix is kept as it is stored."""
        if self._stored is None:
            self._stored = self._source.whole(self._value)
        return _Transposed(self._stored, self._value.type, self._read)


@dataclass(frozen=True)
class _Transposed:
    """The transpose of a large matrix: `x @ w.T` widens a block of it at a time."""

    stored: Array
    type: TensorType
    read: Reader
    __array_ufunc__ = None

    def __rmatmul__(self, x: Array) -> Array:
        blocks = (self.stored[i : i + BLOCK_ROWS] for i in range(0, len(self.stored), BLOCK_ROWS))
        return np.concatenate([x @ self.read(block, self.type).T for block in blocks], -1)


@dataclass
class _Call:
    """A call on its way to being recorded."""

    graph: Graph
    inputs: Inputs
    forced: dict[Value, Noise | Draw]
    known: dict[Value, Array]
    sketches: dict[str, Sketch] = field(default_factory=dict)
    choices: list[Choice] = field(default_factory=list)

    def value(self, value: Value) -> Array:
        """What a node reads of an input or of another node."""
        if value not in self.forced:
            return self.known[value]
        return round_to(self.forced[value].make(), value.type.dtype)

    def finished(self) -> CheckedCall:
        forced = {v.name: noise for v, noise in self.forced.items()}
        return CheckedCall(self.graph.name, self.inputs, self.sketches, forced, tuple(self.choices))


def record(
    module: Module, source: WeightSource, positions: int, bounds: Bounds, layers: Sequence[int],
    progress: Callable[[int, int], None] = lambda *_: None,
) -> SelfCheck:  # fmt: skip
    """The vectors of a fused module.

    Args:
        module: after the pipeline.
        source: its parameters.
        positions: the most tokens of a sequence.
        bounds: the sizes that the artifact fixes.
        layers: which to record; what is outside of all layers always is.
        progress: told how many layers are done, and how many there are.

    Raises:
        DeepZigError: an op gives values that are not finite.
    """
    recorded = (None, *layers)
    seeds = count(1)
    calls = [_begin(module, graph, inputs, recorded, seeds) for graph, inputs in scenario(module, positions, bounds)]
    # the products are so small that two threads are no faster, and on a busy machine ten times slower
    with threadpool_limits(1, "blas"):
        for done, layer in enumerate(recorded):
            progress(done, len(recorded))
            params: dict[Value, Any] = {}
            for call in calls:
                for node in call.graph.nodes:
                    if node.layer == layer:
                        _record(call, node, source, params)
    progress(len(recorded), len(recorded))
    return SelfCheck(tuple(layers), pages_of(c.inputs for c in calls), tuple(call.finished() for call in calls))


def sampled_layers(module: Module, budget: int | None = BUDGET) -> list[int]:
    """The layers to record: the first of each kind and the last, then others evenly, until the budget is spent.

    Args:
        module: after the pipeline.
        budget: the most parameters to read, in elements; None for all layers.
    """
    sizes: dict[int, int] = {}
    kinds: dict[int, list[str]] = {}
    for graph in module.graphs:
        for node in graph.nodes:
            if node.layer is not None:
                sizes[node.layer] = sizes.get(node.layer, 0) + _read(node)
                kinds.setdefault(node.layer, []).append(node.op.name)
    if not sizes:
        return []
    order = sorted(sizes)
    chosen = {next(i for i in order if kinds[i] == kind) for kind in kinds.values()} | {order[-1]}
    spent = sum(sizes[i] for i in chosen)
    step = len(order)
    while step > 1:
        step = -(-step // 2)
        for i in order[::step]:
            if i not in chosen and (budget is None or spent + sizes[i] <= budget):
                chosen.add(i)
                spent += sizes[i]
    return sorted(chosen)


def _read(node: Node) -> int:
    """Elements of parameters that are read to run a node; of a stack of experts, those that may be chosen."""
    total = 0
    for value in node.inputs:
        if value is None or value.kind != "param":
            continue
        size = math.prod(int(d) for d in value.shape)
        if ids := [v for v in node.inputs if v is not None and v.type.dtype == "i32" and node.op.name in EXPERTS]:
            used = 2 * int(ids[0].shape[1]) + int(str(node.attrs.get("shared", 0)))
            size = size // int(value.shape[0]) * min(used, int(value.shape[0]))
        total += size
    return total


def _begin(
    module: Module, graph: Graph, inputs: Inputs, layers: Sequence[int | None], seeds: Iterator[int]
) -> _Call:  # fmt: skip
    """A call, with what is known before any node has run."""
    sizes = {"pages": pages_of([inputs])}
    known: dict[Value, Array] = {}
    for value in graph.inputs:
        given = inputs[value.name]
        kind = np.int32 if value.type.dtype == "i32" else np.float32
        known[value] = given.make() if isinstance(given, Noise) else np.array(given, kind)
        sizes.update((d, n) for d, n in zip(value.shape, known[value].shape, strict=True) if isinstance(d, str))
    for state in module.states_of(graph):
        known[state] = np.zeros(_shape(state, sizes), np.float32)
    return _Call(graph, inputs, _forced(graph, sizes, layers, seeds), known)


def _forced(
    graph: Graph, sizes: Mapping[str, int], layers: Sequence[int | None], seeds: Iterator[int]
) -> dict[Value, Noise | Draw]:  # fmt: skip
    """What recorded nodes read of other nodes, but integers that are no choice."""
    made = graph.producers()
    users: dict[Value, list[Node]] = {}
    for node in graph.nodes:
        for value in node.inputs:
            if value in made and node.layer in layers:
                users.setdefault(value, []).append(node)
    forced: dict[Value, Noise | Draw] = {}
    for value, readers in users.items():
        shape, node, seed = _shape(value, sizes), made[value], next(seeds)
        if value.type.dtype != "i32":
            scale = SMALL if any("eps" in reader.attrs for reader in readers) and _is_f32(value) else 1.0
            forced[value] = Noise(seed, shape, 24 if _is_f32(value) else 6, scale)
        elif node.op.name in CHOICES:
            forced[value] = Draw(seed, (shape[0], shape[1]), CHOICES[node.op.name](node))
    return forced


def _is_f32(value: Value) -> bool:
    return value.type.dtype == "f32"


def _shape(value: Value, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """A value's shape with its symbols bound; a dimension may be a product such as `p*64`."""
    return tuple(math.prod(int(sizes.get(f, f)) for f in str(dim).split("*")) for dim in value.shape)


def _record(call: _Call, node: Node, source: WeightSource, params: dict[Value, Any]) -> None:
    """Run a node, and record what it computes."""
    inputs = [
        None if v is None else _parameter(node, v, source, params) if v.kind == "param" else call.value(v)
        for v in node.inputs
    ]  # fmt: skip
    outputs = _evaluate(node, inputs)
    for value, array in zip(node.outputs, outputs, strict=True):
        if not np.isfinite(array).all() and node.op.name not in MASKS:
            layer = "" if node.layer is None else f"layer {node.layer}, "
            where = f"{call.graph.name}, {layer}{node.op.name} ({node.where})"
            raise DeepZigError("the model computes values that are no numbers", where, "compile with another --dtype")
        if value not in call.forced:
            call.known[value] = array
    if any(v.type.dtype == "i32" for v in node.outputs):
        call.choices.append(_choice(node, inputs, outputs))
        return
    for value, array in zip(node.outputs, outputs, strict=True):
        if node.op.name not in MASKS:
            call.sketches[value.name] = Sketch.of(array)


def _choice(node: Node, inputs: Sequence[Any], outputs: Sequence[Array]) -> Choice:
    """The whole outputs, and the rows that come out otherwise when what they follow from is a little disturbed."""
    local = [v is not None and v.kind == "local" and v.type.dtype == "f32" for v in node.inputs]
    unsure: set[int] = set()
    if any(local):
        disturbed = [
            x if v is None or v.kind == "param" else _disturbed(np.concatenate([x] * TRIALS), DOUBT * computed)
            for v, x, computed in zip(node.inputs, inputs, local, strict=True)
        ]  # fmt: skip
        for value, before, after in zip(node.outputs, outputs, _evaluate(node, disturbed), strict=True):
            if value.type.dtype == "i32":
                other = (after.reshape(TRIALS, *before.shape) != before).any((0, 2))
                unsure.update(map(int, np.flatnonzero(other)))
    values = {v.name: _plain(x) for v, x in zip(node.outputs, outputs, strict=True)}
    return Choice(values, tuple(sorted(unsure)))


def _disturbed(x: Array, by: float) -> Array:
    """Each element larger or smaller by this part of it."""
    if not by:
        return x
    disturbed: Array = x * (1 + np.float32(by) * (1 + Noise(1, x.shape, 1).make()))
    return disturbed


def _plain(x: Array) -> list[list[float]]:
    """Rows of numbers; floats with eight digits, which are enough for an f32."""
    rows = x.reshape(len(x), -1).tolist()
    return rows if x.dtype.kind == "i" else [[float(f"{v:.8g}") for v in row] for row in rows]


def _evaluate(node: Node, inputs: Sequence[Any]) -> list[Array]:
    padded = [*inputs, *[None] * (len(node.op.inputs) - len(inputs))]
    result = node.op.meaning(*padded, **node.attrs)
    outputs = result if isinstance(result, tuple) else (result,)
    return [round_to(np.asarray(x), v.type.dtype) for v, x in zip(node.outputs, outputs, strict=True)]


def _parameter(node: Node, value: Value, source: WeightSource, params: dict[Value, Any]) -> Any:
    """A parameter as f32: stacks of experts and large matrices lazily, as few of their slices are read at once."""
    if value not in params:
        large = len(value.shape) == 2 and int(value.shape[0]) > BLOCK_ROWS
        lazy = large or (len(value.shape) == 3 and node.op.name in EXPERTS)
        params[value] = LazyStack(source, value, operand) if lazy else operand(source.whole(value), value.type)
    return params[value]


def operand(stored: Array, type_: TensorType) -> Any:
    """A parameter of this type, or a piece of one, as ops take it."""
    if type_.dtype == FP8:
        return values_fp8(stored, int(type_.shape[-1]))
    values = as_f32(stored, type_.dtype)
    return QuantizedMatrix.of(values, type_.dtype) if type_.dtype in QUANTIZED else values
