"""The calls whose results are recorded as self-check vectors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from deepzig.artifacts.selfcheck import Noise
from deepzig.ir import Graph, Module

from .trace import Bounds

Inputs = dict[str, Any]
"""Input -> its values as lists, or noise."""

LONG, SHORT = 37, 14
"""Rows of the two sequences that `prefill` is given; odd, so that tiles of any size are left with a rest."""


def scenario(module: Module, positions: int, bounds: Bounds) -> Iterator[tuple[Graph, Inputs]]:
    """Each graph with its inputs: two sequences, of which one goes over the end of a page, read and continued; draws.

    Args:
        module: the module.
        positions: the most tokens of a sequence.
        bounds: the sizes that the artifact fixes.
    """
    rng = np.random.Generator(np.random.PCG64(7))
    more = min(3, bounds.decode_rows)
    most = max(min(bounds.chunk, bounds.rows // 2, positions - more), 1)
    long, short = min(LONG, most), min(SHORT, most)
    begin = max(min(2 * bounds.page_size - 11, positions - long - more), 0)
    spans = {
        "prefill": [(begin, begin + long), (0, short)],
        "decode": [(begin + long, begin + long + 1), (short, short + more)],
        "draft": [(begin, begin + min(long, bounds.decode_rows, 5)), (0, min(short, bounds.decode_rows, 8))],
    }
    batch = min(2, bounds.batch)
    columns = -(-(begin + long + more) // bounds.page_size)
    table = np.arange(batch * columns)[::-1].reshape(columns, batch).T.tolist()
    for graph in module.graphs:
        if graph.name not in spans:
            yield graph, _draws(graph)
            continue
        rows = [(s, t) for s, span in enumerate(spans[graph.name][:batch]) for t in range(*span)]
        seq, pos = zip(*rows, strict=True)
        inputs: Inputs = {"seq": list(seq), "pos": list(pos), "block_table": table, "out_rows": [0, len(seq) - 1]}
        for value in graph.inputs:
            if value.name == "tokens":
                inputs["tokens"] = rng.integers(0, _vocabulary(graph), len(seq)).tolist()
            elif value.name == "route":
                layers, k = map(int, value.shape[1:])
                choice = (np.arange(len(seq))[:, None, None] + np.arange(k)) % k
                inputs["route"] = np.repeat(choice, layers, 1).tolist()
            elif value.name not in inputs:
                inputs[value.name] = Noise(3, (len(seq), int(value.shape[1])))
        yield graph, inputs


def pages_of(calls: Iterable[Mapping[str, Any]]) -> int:
    """How many pages of cache the inputs of calls name."""
    return 1 + max((max(map(max, inputs["block_table"])) for inputs in calls if "block_table" in inputs), default=0)


def _vocabulary(graph: Graph) -> int:
    """Rows of the table of embeddings."""
    (size,) = {int(node.inputs[1].shape[0]) for node in graph.nodes if node.op.name == "embed" and node.inputs[1]}
    return size


def _draws(graph: Graph) -> Inputs:
    """Logits with draws that differ in every option."""
    rows = [(0.0, 0, 1.0, 0.0), (1.0, 0, 1.0, 0.0), (0.7, 5, 1.0, 0.0), (1.3, 0, 0.8, 0.0), (0.9, 40, 0.95, 0.05)]
    temperature, top_k, top_p, min_p = map(list, zip(*rows, strict=True))
    (logits, *_) = graph.inputs
    return {
        "logits": Noise(1, (len(rows), int(logits.shape[1])), scale=4.0), "temperature": temperature, "top_k": top_k,
        "top_p": top_p, "min_p": min_p, "seed": [[17 * i + 1, i] for i in range(len(rows))],
        "position": list(range(len(rows))),
    }  # fmt: skip
