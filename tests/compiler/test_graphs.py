"""graphs.json: what fused ops stand for, and layers that are alike stored once."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from deepzig.compiler.graphs import graphs_json
from deepzig.compiler.origins import origins
from deepzig.compiler.pipeline import run_pipeline
from deepzig.ir import Module, eliminate_dead

from .traced import VARIANTS, config, random_config, traced

MLA = ["reshape", "slice", "slice", "rope", "concat", "cache_read", "slice", "slice", "linear", "reshape", "slice",
       "slice", "expand", "concat", "attend", "reshape"]  # fmt: skip
ATTENTION = [
    ("proj", ["rms_norm", "linear", "linear"]),
    ("proj", ["rms_norm", "linear"]),
    ("latent_write", ["slice", "rms_norm", "slice", "rope", "concat", "cache_write"]),
    ("mla_decode", MLA),
    ("proj", ["linear", "add"]),
]
DENSE = [*ATTENTION, ("gated_proj", ["rms_norm", "linear", "linear", "silu", "mul"]), ("proj", ["linear", "add"])]
EXPERTS = ["expand", "expert_linear", "expert_linear", "silu", "mul", "expert_linear", "combine"]
MOE = [
    *ATTENTION,
    ("rms_norm", ["rms_norm"]),
    ("router", ["linear", "sigmoid", "bias_add", "mask_groups", "topk", "gather", "normalize", "scale"]),
    ("moe", [*EXPERTS, "linear", "linear", "silu", "mul", "linear", "add", "add"]),
]


def data(before: Module, after: Module) -> Any:
    return json.loads(graphs_json(before, after))


def stands_for(graphs: Any, name: str, number: int) -> list[tuple[str, list[str]]]:
    """The ops of a section after fusion, and of what each stands for."""
    graph = graphs["graphs"][name]
    before, after = (graphs["blocks"][graph[side]["sections"][number]["block"]] for side in ("before", "after"))
    return [(node["op"], [before[i]["op"] for i in node["replaces"]]) for node in after]


@pytest.fixture(scope="module")
def before() -> Module:
    return traced(config(num_hidden_layers=5, first_k_dense_replace=2))


@pytest.fixture(scope="module")
def graphs(before: Module) -> Any:
    return data(before, run_pipeline(before))


def test_what_fused_ops_stand_for(graphs: Any) -> None:
    assert stands_for(graphs, "decode", 0) == [("embed", ["embed"]), ("rope_angles", ["rope_angles"])]
    assert stands_for(graphs, "decode", 1) == DENSE
    assert stands_for(graphs, "decode", 3) == MOE
    assert stands_for(graphs, "prefill", 3) == [("mla_prefill", b) if a == "mla_decode" else (a, b) for a, b in MOE]
    assert stands_for(graphs, "decode", 6) == [("take_rows", ["take_rows"]), ("proj", ["rms_norm", "linear"])]


def test_alike_layers_are_stored_once(graphs: Any) -> None:
    for name in ("prefill", "decode"):
        for side in ("before", "after"):
            sections = graphs["graphs"][name][side]["sections"]
            assert [s["layer"] for s in sections] == [None, 0, 1, 2, 3, 4, None]
            blocks = [s["block"] for s in sections]
            assert blocks[1] == blocks[2] and blocks[3] == blocks[4] == blocks[5] and len(set(blocks)) == 4
    before, after = (graphs["graphs"][n]["before"]["sections"] for n in ("prefill", "decode"))
    assert [s["block"] for s in before] == [s["block"] for s in after]  # one trace, two entry points


def test_names_lead_back_to_the_graphs(before: Module, graphs: Any) -> None:
    """Every operand of every section is the one that the traced graph has."""
    for name in ("prefill", "decode"):
        nodes = iter(before.graph(name).nodes)
        for section in graphs["graphs"][name]["before"]["sections"]:
            for stored in graphs["blocks"][section["block"]]:
                node = next(nodes)
                assert stored["op"] == node.op.name and stored["where"] == node.where
                assert stored["outputs"] == [str(v.type) for v in node.outputs]
                for operand, value in zip(stored["inputs"], node.inputs, strict=True):
                    if isinstance(operand, dict):
                        (param,) = operand["params"]
                        assert value is not None and param.replace("*", str(section["layer"])) == value.name
                        assert operand["type"] == str(value.type)
                    elif isinstance(operand, str):
                        assert value is not None and section["reads"][int(operand[1:])] == value.name
                    else:
                        told = None if operand is None else section["values"][operand]
                        assert told == (value and value.name)
        assert next(nodes, None) is None


def test_weights_made_at_compile_time_name_their_parameters(graphs: Any) -> None:
    section = graphs["graphs"]["decode"]["after"]["sections"][3]
    merged = graphs["blocks"][section["block"]][0]["inputs"][1]
    names = ["q_a_proj", "kv_a_proj_with_mqa"]
    assert merged == {"params": [f"model.layers.*.self_attn.{n}.weight" for n in names], "type": "f32[50, 48]"}


def test_a_layer_for_prediction(before: Module) -> None:
    module = traced(config(num_nextn_predict_layers=1), draft=True)
    graphs = data(module, run_pipeline(module))
    split = [("proj", ["rms_norm", "concat", "linear"]), ("proj", ["linear"])]
    assert stands_for(graphs, "draft", 0)[2:4] == split
    assert stands_for(graphs, "draft", 1) == MOE


def all_stand(before: Module, after: Module) -> None:
    """Every traced node that is not dead is stood for, in its own layer, and every fused node stands for some."""
    for graph in after.graphs:
        live = eliminate_dead(before.graph(graph.name))
        found = origins(live, graph, after.weights)
        assert set(found) == set(graph.nodes) and all(found.values())
        assert {node for nodes in found.values() for node in nodes} == set(live.nodes)
        assert all(node.layer == old.layer for node, nodes in found.items() for old in nodes)


@pytest.mark.parametrize("limit", [0, 1, 7, None])
@pytest.mark.parametrize("name", VARIANTS)
def test_every_traced_node_is_stood_for(name: str, limit: int | None) -> None:
    module = traced(config(**VARIANTS[name]))
    all_stand(module, run_pipeline(module, limit=limit))


@pytest.mark.parametrize("seed", range(6))
def test_every_traced_node_of_random_models_is_stood_for(seed: int) -> None:
    rng = np.random.default_rng(seed)
    c = random_config(rng)
    module = traced(c, route=bool(seed % 2), draft=c.num_nextn_predict_layers > 0)
    all_stand(module, run_pipeline(module))


def test_61_layers_take_little_room() -> None:
    c = config(num_hidden_layers=61, first_k_dense_replace=3, n_routed_experts=256, num_experts_per_tok=8, n_group=8,
               topk_group=4)  # fmt: skip
    module = traced(c)
    text = graphs_json(module, run_pipeline(module))
    assert len(text) < 250_000 and len(json.loads(text)["blocks"]) < 20
