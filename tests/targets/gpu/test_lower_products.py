"""Ops that multiply by weights, lowered and run launch by launch, against their meaning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from deepzig.ir import OPS, Node, TensorType, Value
from deepzig.ir.fp8 import FP8
from deepzig.targets.base import Layout
from deepzig.targets.gpu.device import GpuTarget
from deepzig.targets.gpu.lowering import LOWERINGS
from deepzig.targets.gpu.weights import gate_up_layout, parts, rows_layout

from .conftest import KINDS, SoftwareGpu
from .test_few import DEVICES, error, normal, weight
from .test_moe import routing

TOLERANCE = 1e-5


@dataclass
class Eager:
    """An `Emitter` that runs each kernel at once; its operands are arrays.

    Attributes:
        compiler: of kernels.
        arrays: value -> data, of parameters as the checkpoint has them.
        rows: the size of the symbol n.
        launches: how many kernels ran.
    """

    compiler: SoftwareGpu
    arrays: dict[Value, Any]
    rows: int
    graph: str = "decode"
    launches: int = 0

    def value(self, value: Value) -> Any:
        return self.arrays[value]

    def weight(self, layout: Layout, *sources: Value) -> Any:
        taken = [self.arrays[source][slice(*(layout.part or (None,)))] for source in sources]
        stored = layout.stored(*(source.type for source in sources))
        if taken[0].ndim < 3:
            packed = layout.pack(*taken)
        else:  # the compiler packs slice by slice
            packed = np.stack([layout.pack(*slices) for slices in zip(*taken, strict=True)])
        assert packed.shape == stored.shape
        return packed

    def call(self, kernel: Any, args: Sequence[Any], *outputs: TensorType) -> Any:
        numpy = {"f32": np.float32, "i32": np.int32, "u32": np.uint32}
        shapes = [[self.rows if d in ("n", "r") else int(d) for d in t.shape] for t in outputs]
        results = [np.full(s, -1).astype(numpy[t.dtype]) for s, t in zip(shapes, outputs, strict=True)]
        self.launches += 1
        self.compiler(kernel)(*args, *results)
        return results[0] if len(results) == 1 else tuple(results)

    def update(self, kernel: Any, args: Sequence[Any]) -> Any:
        self.launches += 1
        self.compiler(kernel)(*args)
        return args[-1]


class Inputs:
    """Values of a node with their data."""

    def __init__(self, rng: np.random.Generator, rows: int) -> None:
        self.rng, self.rows = rng, rows
        self.arrays: dict[Value, Any] = {}
        self.meant: list[Any] = []

    def add(self, stored: Any, meant: Any, type_: TensorType, kind: Any = "local") -> Value:
        value = Value(f"v{len(self.arrays)}", type_, kind)
        self.arrays[value] = stored
        self.meant.append(meant)
        return value

    def activation(self, *sizes: int) -> Value:
        x = normal(self.rng, self.rows, *sizes)
        return self.add(x, x, TensorType("f32", ("n", *sizes)))

    def vector(self, size: int) -> Value:
        x = normal(self.rng, size)
        return self.add(x, x, TensorType("f32", (size,)), "param")

    def matrix(self, dtype: str, *shape: int) -> Value:
        stored, meant = weight(self.rng, shape, dtype)
        return self.add(stored, meant, TensorType(dtype, shape), "param")


def lowered(
    gpu: Any, device: str, inputs: Inputs, node: Node, binding_bytes: int | None = None, graph: str = "decode"
) -> tuple[Any, int]:
    """The result of a node, and how many kernels made it."""
    limits = KINDS[device] if binding_bytes is None else replace(KINDS[device], binding_bytes=binding_bytes)
    emitter = Eager(gpu(device), inputs.arrays, inputs.rows, graph)
    [variant] = LOWERINGS[node.op.name]
    return variant.lower(emitter, node, GpuTarget(limits, frozenset(), "x86_64-linux", device)), emitter.launches


def node(op: str, values: Sequence[Value | None], output: TensorType, **attrs: Any) -> Node:
    return Node(OPS[op], tuple(values), attrs, (Value("y", output),))


@pytest.mark.parametrize("device", DEVICES)
def test_a_projection_with_everything(gpu: Any, device: str) -> None:
    made = Inputs(np.random.default_rng(1), 3)
    x, w, norm = made.activation(83), made.matrix("bf16", 29, 70), made.vector(70)
    proj = node(
        "proj", (x, w, norm, made.vector(29), made.activation(29)), TensorType("f32", ("n", 29)), begin=5, eps=0.1
    )
    whole, launches = lowered(gpu, device, made, proj)
    assert launches == 1 and error(whole, OPS["proj"].meaning(*made.meant, begin=5, eps=0.1)) <= TOLERANCE
    cut, launches = lowered(gpu, device, made, proj, binding_bytes=4 * 64 * 11)  # of a row's 128 halves
    assert launches == 3 and np.array_equal(cut, whole)


@pytest.mark.parametrize("device", DEVICES)
def test_linear_with_a_bias(gpu: Any, device: str) -> None:
    made = Inputs(np.random.default_rng(2), 2)
    values = made.activation(40), made.matrix("f16", 9, 40), made.vector(9)
    y, _ = lowered(gpu, device, made, node("linear", values, TensorType("f32", ("n", 9))))
    assert error(y, OPS["linear"].meaning(*made.meant)) <= TOLERANCE


@pytest.mark.parametrize("device", DEVICES)
def test_gated(gpu: Any, device: str) -> None:
    made = Inputs(np.random.default_rng(3), 5)
    values = [made.activation(64), made.matrix("q8", 21, 64), made.matrix("q8", 21, 64)]
    gated = node("gated_proj", values, TensorType("f32", ("n", 21)))
    whole, launches = lowered(gpu, device, made, gated)
    assert launches == 1 and error(whole, OPS["gated_proj"].meaning(*made.meant, None)) <= TOLERANCE
    cut, launches = lowered(gpu, device, made, gated, binding_bytes=20 * 4 * 2 * 8)
    assert launches == 3 and np.array_equal(cut, whole)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("rows", [1, 6])
def test_a_mixture_in_shards(gpu: Any, device: str, rows: int) -> None:
    """Of one row nothing is sorted where launches cost time, unless there are shards: its bits are the same."""
    experts, hidden, width = 7, 48, 20
    made = Inputs(np.random.default_rng(4), rows)
    ids, weights = routing(made.rng, rows, experts - 1, 2)
    values = [made.activation(hidden)]
    values += [made.add(a, a, TensorType(dtype, ("n", 2))) for a, dtype in ((ids, "i32"), (weights, "f32"))]
    sizes = (width, hidden), (width, hidden), (hidden, width)
    values += [made.matrix(FP8, experts, *size) for size in sizes]
    moe = node("moe", (*values, made.activation(hidden)), TensorType("f32", ("n", hidden)), shared=1)
    whole, launches = lowered(gpu, device, made, moe)
    assert launches == (4 if KINDS[device].replay else 6)
    assert error(whole, OPS["moe"].meaning(*made.meant, shared=1)) <= TOLERANCE
    expert = 48 * 36 * 4
    cut, launches = lowered(gpu, device, made, moe, binding_bytes=3 * expert)
    assert launches == 8 and np.array_equal(cut, whole)


def test_parts() -> None:
    matrix, stack = TensorType("bf16", (1000, 128)), TensorType("q4", (10, 3, 128))
    assert list(parts(rows_layout, 256 * 1000, matrix)) == [None]
    assert list(parts(rows_layout, 256 * 1000 - 1, matrix)) == [(0, 999), (999, 1000)]
    assert list(parts(gate_up_layout, 256 * 1000, matrix, matrix)) == [(0, 500), (500, 1000)]
    assert list(parts(rows_layout, 20 * 4 * 3 * 4, stack)) == [(0, 4), (4, 8), (8, 10)]
    assert rows_layout("q4", (4, 8)).stored(stack) == TensorType("u32", (4, 3, 20))
    assert rows_layout("q4", (4, 8)).name == "rows-q4@4:8"
