"""From a model definition to a module: the same definition traced once for each way the model is called."""

from __future__ import annotations

from dataclasses import dataclass

from deepzig.ir import Builder, Graph, Module, ModuleBuilder
from deepzig.models.config import ModelConfig
from deepzig.models.definition import Rows, define, define_draft

from .precision import Rule, quantize_nothing


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

    chunk: int = 512
    decode_rows: int = 32
    rows: int = 512
    batch: int = 64
    page_size: int = 64


def trace(
    config: ModelConfig, dtype: str, bounds: Bounds, debug_route: bool = False, draft: bool = False,
    quant: Rule = quantize_nothing, cache: str | None = None, hidden: bool = False,
) -> Module:  # fmt: skip
    """Trace the definition into the graphs `prefill`, `decode` and `sample`, and `draft` if asked for.

    Args:
        config: the model.
        dtype: how matrices are stored: f32, bf16 or f16.
        bounds: the sizes that the artifact fixes.
        debug_route: adds an input `route` [n, MoE layers, k] that forces the expert choice.
        draft: the model has a layer for multi-token prediction, which shall be a graph too.
        quant: which matrices are quantised.
        cache: how the cache is stored: f32, bf16, f16 or q8; None: as matrices.
        hidden: `prefill` and `decode` return hidden states too; with `draft` they do anyhow.
    """
    m = ModuleBuilder(dtype, quant, cache)
    hidden = hidden or draft
    graphs = []
    for name, rows_per_seq in (("prefill", bounds.chunk), ("decode", bounds.decode_rows)):
        b = Builder()
        outputs = define(b, m, config, Rows.inputs(b, config, debug_route), bounds.page_size, hidden_too=hidden)
        graphs.append(b.graph(name, outputs, {"rows": bounds.rows, "rows_per_seq": rows_per_seq}))
    if draft:
        graphs.append(_draft_graph(m, config, bounds))
    return m.module((*graphs, _sample_graph(config.vocab_size)))


def _draft_graph(m: ModuleBuilder, config: ModelConfig, bounds: Bounds) -> Graph:
    b = Builder()
    rows = Rows.inputs(b, config)
    hidden = b.input("hidden", "f32", ("n", config.hidden_size))
    outputs = define_draft(b, m, config, rows, hidden, bounds.page_size)
    return b.graph("draft", outputs, {"rows": bounds.rows, "rows_per_seq": bounds.decode_rows})


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
