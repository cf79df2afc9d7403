"""From a model definition to a module: the same definition traced once for each way the model is called."""

from __future__ import annotations

from dataclasses import dataclass

from deepzig.ir import Builder, Graph, Module, ModuleBuilder
from deepzig.models.config import ModelConfig
from deepzig.models.definition import Rows, define


@dataclass(frozen=True)
class Bounds:
    """Sizes that an artifact fixes.

    Attributes:
        chunk: prompts are cut at multiples of this many tokens; also the most rows of one sequence in a call.
        decode_rows: the most rows that one sequence may bring to a `decode` call; with more it takes `prefill`.
        rows: the most rows of a call, all sequences together.
        batch: the most sequences of a call.
        page_size: tokens in a cache page.
    """

    chunk: int = 256
    decode_rows: int = 32
    rows: int = 512
    batch: int = 64
    page_size: int = 64


def trace(config: ModelConfig, dtype: str, bounds: Bounds, debug_route: bool = False) -> Module:
    """Trace the definition into the graphs `prefill`, `decode` and `sample`.

    Args:
        config: the model.
        dtype: how matrices and the cache are stored: f32, bf16 or f16.
        bounds: the sizes that the artifact fixes.
        debug_route: adds an input `route` [n, MoE layers, k] that forces the expert choice.
    """
    m = ModuleBuilder(dtype)
    per_sequence = {"prefill": bounds.chunk, "decode": bounds.decode_rows}
    graphs = [_model_graph(m, config, name, rows, bounds, debug_route) for name, rows in per_sequence.items()]
    return m.module((*graphs, _sample_graph(config.vocab_size)))


def _model_graph(
    m: ModuleBuilder, config: ModelConfig, name: str, rows_per_seq: int, bounds: Bounds, debug_route: bool
) -> Graph:
    b = Builder()
    rows = Rows.inputs(b, config, debug_route)
    outputs = define(b, m, config, rows, bounds.page_size)
    return b.graph(name, outputs, {"rows": bounds.rows, "rows_per_seq": rows_per_seq})


def _sample_graph(vocab_size: int) -> Graph:
    b = Builder()
    inputs = (
        b.input("logits", "f32", ("r", vocab_size)),
        b.input("temperature", "f32", ("r",)),
        b.input("top_k", "i32", ("r",)),
        b.input("top_p", "f32", ("r",)),
        b.input("min_p", "f32", ("r",)),
        b.input("seed", "i32", ("r", 2)),
        b.input("position", "i32", ("r",)),
    )
    return b.graph("sample", (b.sample(*inputs),), {})
