"""Self-check vectors of an ONNX model: inputs and outputs of two calls, computed by the interpreter.

The first call brings two prompts, one of them padded on the left; the second continues both by a token. A row of
padding sees itself alone, so to the interpreter each is a sequence of its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from deepzig.artifacts.onnx_file import INPUT_IDS, LOGITS, MASK, PAST_LATENT, POSITIONS, PRESENT_LATENT
from deepzig.compiler.selfcheck import EXPERTS, LazyStack, operand
from deepzig.compiler.weights import WeightSource
from deepzig.errors import DeepZigError
from deepzig.ir import Module, Node, TensorType, Value
from deepzig.ir.interpret import run
from deepzig.ir.quantize import QuantizedMatrix

Array = npt.NDArray[Any]

LONG, SHORT = 5, 3
"""Tokens of the two prompts."""

PADDING = LONG - SHORT
PLACES = [
    [*((0, i) for i in range(LONG + 1))],
    [*((2 + i, 0) for i in range(PADDING)), *((1, i) for i in range(SHORT + 1))],
]  # fmt: skip
"""Sequence and position of every token of both calls, for each row of the batch."""

CALLS = {"prefill": (0, LONG), "decode": (LONG, LONG + 1)}
"""Call -> its columns of PLACES."""

STORED = {"int64": "I64", "float32": "F32", "float16": "F16"}
"""Names of numpy -> names of safetensors."""


def record(module: Module, source: WeightSource, rounded: bool) -> dict[str, Array]:
    """Inputs and outputs of `prefill` and `decode`, by call and name: `decode/present.0.latent`.

    Args:
        module: what is exported.
        source: its weights, of which one matrix is in memory at a time.
        rounded: what quantised matrices multiply is rounded too, as the IR has it.

    Raises:
        DeepZigError: the model computes values that are no numbers.
    """
    (graph,) = module.graphs
    states = module.states_of(graph)
    places = np.array(PLACES)  # [b, t, 2]
    vocabulary = int(graph.outputs[0].shape[1])
    tokens = np.random.Generator(np.random.PCG64(11)).integers(0, vocabulary, places.shape[:2])
    mask = np.array([[1] * (LONG + 1), [0] * PADDING + [1] * (SHORT + 1)])
    pages = int(places[..., 0].max()) + 1
    caches = {s: np.zeros((pages, *map(int, s.shape[1:])), np.float32) for s in states}
    vectors: dict[str, Array] = {}
    for call, (begin, end) in CALLS.items():
        seq, pos = places[:, begin:end].reshape(-1, 2).T
        inputs = {
            INPUT_IDS: tokens[:, begin:end], MASK: mask[:, :end], POSITIONS: places[:, begin:end, 1],
            **_latents(PAST_LATENT, caches, places[:, :begin]),
        }  # fmt: skip
        table = np.arange(pages)[:, None]
        rows = {
            "tokens": inputs[INPUT_IDS].reshape(-1), "seq": seq, "pos": pos, "block_table": table,
            "out_rows": np.arange(len(seq)),
        }  # fmt: skip
        logits, *written = _outputs(module, source, {n: x.astype(np.int32) for n, x in rows.items()}, caches, rounded)
        caches = dict(zip(states, written, strict=True))
        outputs = {
            LOGITS: logits.reshape(len(places), end - begin, -1),
            **_latents(PRESENT_LATENT, caches, places[:, :end]),
        }  # fmt: skip
        vectors |= {f"{call}/{name}": array for name, array in (inputs | outputs).items()}
    return vectors


def safetensors(arrays: Mapping[str, Array]) -> bytes:
    """The arrays as a file of safetensors; those of eight bytes an element stand first, so that all are aligned."""
    ordered = sorted(arrays.items(), key=lambda item: -item[1].itemsize)
    header: dict[str, Any] = {}
    at = 0
    for name, array in ordered:
        offsets = [at, at + array.nbytes]
        header[name] = {"dtype": STORED[array.dtype.name], "shape": array.shape, "data_offsets": offsets}
        at += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, *(np.ascontiguousarray(x).tobytes() for _, x in ordered)])


def _latents(name: str, caches: Mapping[Value, Array], places: Array) -> dict[str, Array]:
    """The caches [pages, page, w] as inputs or outputs of the model, [b, t, w]."""
    kinds = {"f32": np.float32, "f16": np.float16}
    latents = {name % i: (s, x) for i, (s, x) in enumerate(caches.items())}
    return {n: x[places[..., 0], places[..., 1]].astype(kinds[s.type.dtype]) for n, (s, x) in latents.items()}


def _outputs(
    module: Module, source: WeightSource, inputs: Mapping[str, Array], caches: Mapping[Value, Array], rounded: bool
) -> Sequence[Array]:
    """What the graph returns; parameters are read for the node that needs them."""
    (graph,) = module.graphs
    env: dict[Value, Any] = {**{v: inputs[v.name] for v in graph.inputs}, **caches}
    with threadpool_limits(1, "blas"):
        for node in graph.nodes:
            params = {
                v: _parameter(node, v, source, rounded) for v in node.inputs if v is not None and v.kind == "param"
            }
            local = {v: env[v] for v in node.inputs if v is not None and v.kind != "param"}
            scope = {**local, **params}
            run([node], scope)
            env |= {v: scope[v] for v in node.outputs}
    if not np.isfinite(env[graph.outputs[0]]).all():
        raise DeepZigError("the model computes values that are no numbers", LOGITS, "export with another --dtype")
    return [env[v] for v in graph.outputs]


def _parameter(node: Node, value: Value, source: WeightSource, rounded: bool) -> Any:
    """A parameter as f32: tables and stacks of experts lazily, as few of their slices are read."""
    read = operand if rounded else _values
    if len(value.shape) == 2 or node.op.name in EXPERTS:
        return LazyStack(source, value, read)
    return read(source.whole(value), value.type)


def _values(stored: Array, type_: TensorType) -> Any:
    """What weights stand for; the rows that they multiply are not rounded."""
    made = operand(stored, type_)
    return made.values if isinstance(made, QuantizedMatrix) else made
