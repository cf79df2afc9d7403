"""Every pass: what it makes, what it must leave alone, and that the meaning stays."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pytest

from deepzig.compiler.passes.linear import split_concat_linear
from deepzig.compiler.passes.weights import hoist_weights
from deepzig.compiler.pipeline import PIPELINE, Pass, run_pipeline
from deepzig.errors import DeepZigError
from deepzig.ir import Graph, Module, interpret, parse, same, show, verify

from .traced import BOUNDS, config, distance, parameters, random_config, rows, states, traced

MEANING = 5e-6
"""f32: a fused op may order its sums otherwise."""

NAMES = [p.__name__ for p in PIPELINE]

MADE = {
    "fuse_router": "router",
    "fuse_experts": "moe",
    "fuse_latent_write": "latent_write",
    "fuse_mla": "mla_decode",
    "fuse_swiglu": "gated_proj",
    "fuse_residual_into_linear": "proj",
    "fuse_norm_into_linear": "proj",
}
"""Pass -> the op that it brings in."""


def through(module: Module, last: int) -> Module:
    """The module after the first `last` passes."""
    for run in PIPELINE[:last]:
        module = module.with_graphs(tuple(run(g) for g in module.graphs))
    return module


def ops(graph: Graph) -> Counter[str]:
    return Counter(node.op.name for node in graph.nodes)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("route", [False, True])
def test_every_stage_means_the_same(seed: int, route: bool) -> None:
    rng = np.random.default_rng(seed)
    c = random_config(rng)
    module = traced(c, "f32", route, draft=seed % 2 == 0)
    values, caches, inputs = parameters(module, rng), states(module, rng), rows(c, rng, route)
    for name in [graph.name for graph in module.graphs if graph.name != "sample"]:
        want, cached = interpret(module, name, inputs, values, caches)
        stages = [*(through(module, i) for i in range(1, len(PIPELINE) + 1)), run_pipeline(module)]
        previous = module
        for stage in stages:
            if stage is previous:
                continue
            verify(stage)
            assert same(parse(show(stage)), stage)
            got, caches_got = interpret(stage, name, inputs, values, caches)
            assert all(distance(g, w) <= MEANING for g, w in zip(got, want, strict=True))
            assert all(distance(caches_got[k], cached[k]) <= MEANING for k in cached)
            previous = stage


@pytest.mark.parametrize("number", range(len(PIPELINE)), ids=NAMES)
def test_a_pass_gives_the_same_object_when_nothing_matches(number: int) -> None:
    run = PIPELINE[number]
    graph = run_pipeline(traced(config())).graph("decode")
    assert run(graph) is graph
    sample = traced(config()).graph("sample")
    assert run(sample) is sample


@pytest.mark.parametrize(("name", "op"), MADE.items())
def test_a_pass_brings_in_its_op_in_every_layer(name: str, op: str) -> None:
    number = NAMES.index(name)
    before, after = (through(traced(config()), i).graph("decode") for i in (number, number + 1))
    layers = {"router": 2, "moe": 2, "gated_proj": 1}.get(op, 3)
    assert ops(after)[op] - ops(before)[op] >= layers


INNER = {
    "fuse_router": "sigmoid",
    "fuse_experts": "silu",
    "fold_shared_experts": "moe",
    "fuse_residual_into_moe": "moe",
    "fuse_latent_write": "rope",
    "fuse_mla": "cache_read",
    "fuse_swiglu": "silu",
    "fuse_residual_into_linear": "linear",
    "fuse_norm_into_linear": "rms_norm",
    "merge_latent_projections": "linear",
    "fuse_norm_into_swiglu": "rms_norm",
}
"""Pass -> an op inside of what it matches: with its value wanted elsewhere too, nothing may be fused over it."""


@pytest.mark.parametrize(("name", "op"), INNER.items())
def test_a_second_use_of_an_inner_value_is_a_near_miss(name: str, op: str) -> None:
    number = NAMES.index(name)
    graph = through(traced(config()), number).graph("decode")
    inner = tuple(v for node in graph.nodes if node.op.name == op for v in node.outputs)
    shown = dataclasses.replace(graph, outputs=(*graph.outputs, *inner))
    fused = PIPELINE[number](shown)
    assert all(value in {v for node in fused.nodes for v in node.outputs} for value in inner)
    gained = ops(fused) - ops(shown)
    assert gained.get(MADE.get(name, ""), 0) == 0 or op == "rope"


def test_dead_nodes_are_eliminated_before_matching() -> None:
    forced = run_pipeline(traced(config(), "f32", route=True)).graph("decode")
    assert ops(forced)["router"] == 2 and ops(forced)["forced_route"] == 2


def test_attention_form_follows_the_rows_of_a_sequence() -> None:
    fused = run_pipeline(traced(config()))
    assert ops(fused.graph("decode"))["mla_decode"] == 3 and not ops(fused.graph("decode"))["mla_prefill"]
    assert ops(fused.graph("prefill"))["mla_prefill"] == 3 and not ops(fused.graph("prefill"))["mla_decode"]


def test_weights_are_shared_between_graphs() -> None:
    fused = run_pipeline(traced(config()))
    assert len({node.outputs[0].name for node in fused.weights}) == len(fused.weights)
    names = [{v.name for v in fused.graph(g).globals() if v.kind == "param"} for g in ("prefill", "decode")]
    assert names[0] == names[1]
    assert hoist_weights(fused) is fused


def test_a_product_of_two_side_by_side_is_two_products() -> None:
    draft = run_pipeline(traced(config(), draft=True)).graph("draft")
    assert not ops(draft)["concat"] and not ops(draft)["slice"]
    eh, *_ = [node for node in draft.nodes if node.op.name == "proj" and len(node.inputs) == 5]
    assert eh.inputs[4] in {node.output for node in draft.nodes if node.op.name == "proj"}  # the residual


def test_a_product_of_two_with_a_bias_is_let_alone() -> None:
    text = """
param @w: f32[5, 7]
param @b: f32[5]

graph f(%x: f32[n, 3], %y: f32[n, 4]):
  %0: f32[n, 7] = concat(%x, %y) {axis=1}
  %1: f32[n, 5] = linear(%0, @w, @b)
  return %1
"""
    graph = parse(text).graph("f")
    assert split_concat_linear(graph) is graph


def test_biases_of_one_projection_only_are_not_merged() -> None:
    text = show(traced(config(attention_bias=False)))
    assert (
        ops(run_pipeline(parse(text)).graph("decode"))["proj"]
        == ops(run_pipeline(traced(config())).graph("decode"))["proj"]
    )
    q_a = "model.layers.0.self_attn.q_a_proj.weight"
    lines = text.replace(f"@{q_a})", f"@{q_a}, @model.layers.0.self_attn.q_a_proj.bias)")
    biased = parse(f"param @model.layers.0.self_attn.q_a_proj.bias: f32[24]\n{lines}")
    fused = run_pipeline(biased).graph("decode")
    assert ops(fused)["linear"] == 2


@pytest.mark.parametrize("limit", [0, 1, 7])
def test_the_limit_counts_rewrites(limit: int) -> None:
    module = traced(config())
    before, after = (
        Counter(n.op.name for g in m.graphs for n in g.nodes) for m in (module, run_pipeline(module, limit=limit))
    )
    made = {"router", "moe", "latent_write", "mla_decode", "mla_prefill", "gated_proj", "proj"}
    assert sum((after - before)[op] for op in made) <= limit
    assert (limit == 0) == (not any(after[op] for op in made))


def test_stages_can_be_dumped_and_stopped_at(tmp_path: object) -> None:
    from pathlib import Path

    folder = Path(str(tmp_path)) / "ir"
    module = run_pipeline(traced(config()), dump=folder, stop_after="fuse_mla")
    files = sorted(f.name for f in folder.iterdir())
    assert files[0] == "00-trace.ir" and files[-1].endswith("-fuse_mla.ir")
    assert same(parse((folder / files[-1]).read_text()), module)


def test_an_unknown_stage_is_refused() -> None:
    with pytest.raises(DeepZigError) as error:
        run_pipeline(traced(config()), stop_after="fuse_everything")
    assert str(error.value).splitlines()[:2] == ["no pass is called 'fuse_everything'", "  at: --stop-after"]


def test_passes_are_plain_functions_with_the_rewrite_as_docstring() -> None:
    for run in PIPELINE:
        plain: Pass = run
        assert plain.__doc__ and ("->" in plain.__doc__ or plain.__name__ == "eliminate_dead")
    assert BOUNDS.decode_rows < 64 < BOUNDS.chunk
