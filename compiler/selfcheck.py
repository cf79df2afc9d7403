"""Recording self-check vectors: the fused graphs run by the meanings of their ops, a layer at a time.

Nothing here calls a kernel, so a wrong kernel can't record its own answer. A layer starts from noise instead of what
the layer before made of it: layers don't depend on each other then, errors don't add up, and of a large model a few can
be recorded without the others. Only the parameters of one layer, and only the experts that are chosen, are in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from deepzig.artifacts.selfcheck import CheckedCall, Choice, Noise, SelfCheck, Sketch
from deepzig.ir import Graph, Module, Node, Value
from deepzig.ir.interpret import round_to
from deepzig.models.config import ModelConfig

from .trace import Bounds
from .weights import WeightSource, as_f32

Array = npt.NDArray[Any]

BUDGET = 300_000_000
"""Parameters of the layers that are recorded, together; the first layers of each kind and the last always are."""
BLOCK_ROWS = 4096
"""Rows of a matrix that are widened to f32 at once."""
DOUBT = {"f32": 1e-4, "f16": 4e-3, "bf16": 4e-3}
"""By how much, relative to it, the input of a choice is disturbed to find the rows that hang on a rounding."""


class LazyStack:
    """A parameter whose slices are read, as f32, when they are asked for."""

    def __init__(self, source: WeightSource, value: Value) -> None:
        self.shape = tuple(map(int, value.shape))
        self._source, self._value = source, value
        self._slices: dict[int, Array] = {}

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> Array:
        """One slice, or those at an array of indices."""
        if isinstance(index, np.ndarray):
            return np.stack([self[i] for i in index])
        if int(index) not in self._slices:
            piece = self._source.piece(self._value, int(index))
            self._slices[int(index)] = as_f32(piece, self._value.type.dtype)
        return self._slices[int(index)]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        """All slices."""
        return np.stack([self[i] for i in range(len(self))])

    @property
    def T(self) -> _Transposed:  # noqa: N802 - numpy's name
        """A matrix's transpose, to multiply by."""
        return _Transposed(self._source, self._value)


@dataclass(frozen=True)
class _Transposed:
    """The transpose of a large matrix: `x @ w.T` widens a block of it at a time."""

    source: WeightSource
    value: Value
    __array_ufunc__ = None

    def __rmatmul__(self, x: Array) -> Array:
        stored = self.source.whole(self.value)
        blocks = (stored[i : i + BLOCK_ROWS] for i in range(0, len(stored), BLOCK_ROWS))
        return np.concatenate([x @ as_f32(block, self.value.type.dtype).T for block in blocks], -1)


@dataclass
class _Call:
    """A call on its way to being recorded."""

    graph: Graph
    inputs: dict[str, Any]
    forced: dict[Value, Noise]
    sketches: dict[str, Sketch] = field(default_factory=dict)
    choices: list[Choice] = field(default_factory=list)

    def arrays(self) -> dict[Value, Array]:
        """What is known before any node has run."""
        env: dict[Value, Array] = {}
        for value in self.graph.inputs:
            given = self.inputs[value.name]
            kind = np.int32 if value.type.dtype == "i32" else np.float32
            env[value] = given.make() if isinstance(given, Noise) else np.array(given, kind)
        return env | {value: noise.make() for value, noise in self.forced.items()}

    def finished(self) -> CheckedCall:
        return CheckedCall(
            self.graph.name, self.inputs, self.sketches, {v.name: n for v, n in self.forced.items()},
            tuple(self.choices),
        )  # fmt: skip


def record(
    module: Module, source: WeightSource, config: ModelConfig, bounds: Bounds, dtype: str, layers: Sequence[int]
) -> SelfCheck:  # fmt: skip
    """The vectors of a fused module.

    Args:
        module: after the pipeline.
        source: its parameters.
        config: the model.
        bounds: the sizes that the artifact fixes.
        dtype: how matrices and the cache are stored.
        layers: which to record.
    """
    calls = [_Call(g, inputs, _forced(g, inputs)) for g, inputs in _scenario(module, config, bounds)]
    pages = 1 + max(int(np.max(c.inputs["block_table"])) for c in calls if "block_table" in c.inputs)
    outside = [_run(call, None, call.arrays(), source, {}, DOUBT[dtype]) for call in calls]
    for layer in layers:
        params: dict[Value, Any] = {}
        states = {s: np.zeros([pages if d == "pages" else int(d) for d in s.shape], np.float32) for s in module.states}
        for call, env in zip(calls, outside, strict=True):
            inner = _run(call, layer, {**env, **states}, source, params, DOUBT[dtype])
            written = module.states_of(call.graph)
            made = call.graph.outputs[len(call.graph.outputs) - len(written) :]
            states.update({s: inner[v] for s, v in zip(written, made, strict=True) if v in inner})
    return SelfCheck(tuple(layers), pages, tuple(call.finished() for call in calls))


def sampled_layers(module: Module, budget: int | None = BUDGET) -> list[int]:
    """The layers to record: the first of each kind and the last, then others evenly, until the budget is spent.

    Args:
        module: after the pipeline.
        budget: the most parameters to read, in elements; None for all layers.
    """
    sizes: dict[int, dict[Value, int]] = {}
    kinds: dict[int, list[str]] = {}
    for graph in module.graphs:
        for node in graph.nodes:
            if node.layer is not None:
                params = {v: int(np.prod([int(d) for d in v.shape])) for v in node.inputs if v and v.kind == "param"}
                sizes.setdefault(node.layer, {}).update(params)
                kinds.setdefault(node.layer, []).append(node.op.name)
    if not sizes:
        return []
    order = sorted(sizes)
    chosen = {next(i for i in order if kinds[i] == kind) for kind in kinds.values()} | {order[-1]}
    spent = sum(sum(sizes[i].values()) for i in chosen)
    for step in (len(order) // 2, len(order) // 4, len(order) // 8, 1):
        for i in order[:: max(step, 1)]:
            size = sum(sizes[i].values())
            if i not in chosen and (budget is None or spent + size <= budget):
                chosen.add(i)
                spent += size
    return sorted(chosen)


def _forced(graph: Graph, inputs: Mapping[str, Any]) -> dict[Value, Noise]:
    """Values that cross into a layer or out of one, but not those that several layers share, such as rotations."""
    made = graph.producers()
    users: dict[Value, set[int | None]] = {}
    for node in graph.nodes:
        for value in node.inputs:
            if value in made and made[value].layer != node.layer:
                users.setdefault(value, set()).add(node.layer)
    sizes = {"n": len(inputs.get("tokens", ())), "r": len(inputs.get("out_rows", ()))}
    forced: dict[Value, Noise] = {}
    for value, layers in users.items():
        if value.type.dtype == "f32" and (made[value].layer is not None or len(layers) == 1):
            shape = tuple(sizes[d] if isinstance(d, str) else d for d in value.shape)
            forced[value] = Noise(len(forced) + 1, shape)
    return forced


def _run(
    call: _Call, layer: int | None, known: dict[Value, Array], source: WeightSource, params: dict[Value, Any],
    doubt: float,
) -> dict[Value, Array]:  # fmt: skip
    """Run and record the nodes of a layer, or those outside of all layers: what is known then."""
    env = dict(known)
    made = call.graph.producers()
    for node in call.graph.nodes:
        if node.layer != layer:
            continue
        inputs = [None if v is None else env[v] if v in env else _parameter(v, source, params) for v in node.inputs]
        outputs = _evaluate(node, inputs)
        chosen = any(v.type.dtype == "i32" for v in node.outputs)
        if chosen:
            outputs = [np.round(x.astype(np.float64), 6).astype(x.dtype) for x in outputs]
            call.choices.append(_choice(node, inputs, outputs, doubt, made))
        for value, array in zip(node.outputs, outputs, strict=True):
            if not chosen:
                call.sketches[value.name] = Sketch.of(array)
            if value not in call.forced:
                env[value] = array
    return env


def _choice(
    node: Node, inputs: Sequence[Any], outputs: Sequence[Array], doubt: float, made: Mapping[Value, Node]
) -> Choice:  # fmt: skip
    """The whole outputs, and the rows that come out otherwise when computed inputs are a little disturbed."""
    unsure: set[int] = set()
    for seed in range(3):
        disturbed = [
            x * (1 + np.float32(doubt) * np.sign(Noise(seed + 1, x.shape).make() + np.float32(1 / 32)))
            if v in made and v is not None and x.dtype == np.float32 else x
            for v, x in zip(node.inputs, inputs, strict=True)
        ]  # fmt: skip
        for value, before, after in zip(node.outputs, outputs, _evaluate(node, disturbed), strict=True):
            if value.type.dtype == "i32":
                other = (before != after).reshape(len(before), -1).any(1)
                unsure.update(map(int, np.flatnonzero(other)))
    values = {v.name: x.reshape(len(x), -1).tolist() for v, x in zip(node.outputs, outputs, strict=True)}
    return Choice(values, tuple(sorted(unsure)))


def _evaluate(node: Node, inputs: Sequence[Any]) -> list[Array]:
    padded = [*inputs, *[None] * (len(node.op.inputs) - len(inputs))]
    result = node.op.meaning(*padded, **node.attrs)
    outputs = result if isinstance(result, tuple) else (result,)
    return [round_to(np.asarray(x), v.type.dtype) for v, x in zip(node.outputs, outputs, strict=True)]


def _parameter(value: Value, source: WeightSource, params: dict[Value, Any]) -> Any:
    """A parameter as f32: stacks and tables lazily, as no more than a few of their slices are read."""
    if value not in params:
        big = len(value.shape) == 3 or int(value.shape[0]) > BLOCK_ROWS
        params[value] = LazyStack(source, value) if big else as_f32(source.whole(value), value.type.dtype)
    return params[value]


def _scenario(module: Module, config: ModelConfig, bounds: Bounds) -> Iterator[tuple[Graph, dict[str, Any]]]:
    """Two sequences, one longer than a page, read and then continued; a draft; and draws of all kinds."""
    rng = np.random.Generator(np.random.PCG64(7))
    page, most = bounds.page_size, min(config.max_position_embeddings, bounds.chunk) - 4
    lengths = [max(min(page + 3, most, bounds.rows - 8), 1), max(min(5, most), 1)]
    columns = -(-(lengths[0] + 1) // page)
    table = np.arange(2 * columns)[::-1].reshape(columns, 2).T.tolist()
    spans = {
        "prefill": [(0, n) for n in lengths],
        "decode": [(n, n + more) for n, more in zip(lengths, (1, min(3, bounds.decode_rows)), strict=True)],
        "draft": [(0, min(n, 9)) for n in lengths],
    }
    for graph in module.graphs:
        if graph.name not in spans:
            yield graph, _draws(graph)
            continue
        rows = [(s, t) for s, (begin, end) in enumerate(spans[graph.name]) for t in range(begin, end)]
        seq, pos = zip(*rows, strict=True)
        inputs: dict[str, Any] = {
            "tokens": rng.integers(0, config.vocab_size, len(seq)).tolist(),
            "seq": list(seq), "pos": list(pos), "block_table": table, "out_rows": [0, len(seq) - 1],
        }  # fmt: skip
        for value in graph.inputs:
            if value.name == "route":
                _, layers, k = map(int, (0, *value.shape[1:]))
                inputs["route"] = [[[(row + j) % k for j in range(k)]] * layers for row in range(len(seq))]
            elif value.name not in inputs:
                inputs[value.name] = Noise(5, (len(seq), int(value.shape[1])))
        yield graph, inputs


def _draws(graph: Graph) -> dict[str, Any]:
    """Logits with draws that differ in every option."""
    rows = [(0.0, 0, 1.0, 0.0), (1.0, 0, 1.0, 0.0), (0.7, 5, 1.0, 0.0), (1.3, 0, 0.8, 0.0), (0.9, 40, 0.95, 0.05)]
    temperature, top_k, top_p, min_p = map(list, zip(*rows, strict=True))
    (logits, *_) = graph.inputs
    return {
        "logits": Noise(3, (len(rows), int(logits.shape[1]))), "temperature": temperature, "top_k": top_k,
        "top_p": top_p, "min_p": min_p, "seed": [[17 * i + 1, i] for i in range(len(rows))],
        "position": list(range(len(rows))),
    }  # fmt: skip
