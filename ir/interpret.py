"""The oracle: a module run by its ops' numpy meanings, in float32 values. Slow, plain, and never a kernel."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from .fp8 import FP8, round_fp8
from .quantize import QUANTIZED, QuantizedMatrix, quantize_rows
from .records import Module, Node, Value

Array = npt.NDArray[np.generic]


def round_to(x: Array, dtype: str) -> Array:
    """`x` rounded to the nearest value that `dtype` can hold; low-precision floats stay float32 arrays.

    Rows of a q8 cache are rounded to 8 bits in groups.
    """
    if dtype == "f32":
        return x.astype(np.float32)
    if dtype == "f16":
        return x.astype(np.float16).astype(np.float32)
    if dtype == "bf16":
        bits = x.astype(np.float32).view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)
    return x.astype(np.int32) if dtype == "i32" else quantize_rows(x.astype(np.float32)) if dtype == "q8" else x


def interpret(
    module: Module, graph: str, inputs: Mapping[str, Array], params: Mapping[str, Array], states: Mapping[str, Array]
) -> tuple[list[Array], dict[str, Array]]:
    """Run one graph.

    Args:
        module: the module.
        graph: which of its graphs.
        inputs: arrays by input name.
        params: arrays by parameter name (bf16 and f16 as float32 arrays); constants may be left out.
        states: arrays by state name; not modified.

    Returns:
        The outputs, and the states after the run.

    Raises:
        KeyError: an input, parameter or state is missing.
    """
    g = module.graph(graph)
    env: dict[Value, Array] = {}
    for value in module.params:
        if value.name in params or value.name in module.constants:
            array = params[value.name] if value.name in params else module.constants[value.name]
            # blocks of 8-bit floats are those of the checkpoint's matrices
            env[value] = round_fp8(array) if value.type.dtype == FP8 else array
    env.update({value: states[value.name] for value in module.states})
    run(module.weights, env)
    # only now: matrices of integers are not rounded before they are put together
    rounded: dict[Value, Any] = {v: QuantizedMatrix.of(x, v.type.dtype) for v, x in env.items() if _quantized(v)}
    env.update(rounded)
    env.update({value: inputs[value.name] for value in g.inputs})
    run(g.nodes, env)
    results = [env[v] for v in g.outputs]
    written = module.states_of(g)
    count = len(results) - len(written)
    return results[:count], {**states, **{s.name: x for s, x in zip(written, results[count:], strict=True)}}


def _quantized(value: Value) -> bool:
    """Whether it is a matrix of integers; a cache of them holds what they stand for."""
    return value.kind == "param" and value.type.dtype in QUANTIZED


def run(nodes: Iterable[Node], env: dict[Value, Array]) -> None:
    """Add the outputs of `nodes`, in order, to `env`."""
    for node in nodes:
        arrays = [None if v is None else env[v] for v in node.inputs]
        arrays += [None] * (len(node.op.inputs) - len(arrays))
        result = node.op.meaning(*arrays, **node.attrs)
        for value, array in zip(node.outputs, result if isinstance(result, tuple) else (result,), strict=True):
            # matrices of integers are rounded when they are whole
            env[value] = np.asarray(array) if _quantized(value) else round_to(np.asarray(array), value.type.dtype)
