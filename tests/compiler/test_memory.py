"""The memory plan against arithmetic by hand, and once against what a process really takes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from deepzig.artifacts.cpu_features import this_machine
from deepzig.compiler.arena import dimension
from deepzig.compiler.driver import Options, compile_model
from deepzig.compiler.lower import lower
from deepzig.compiler.memory import active_weights, greatest, pooled, stored_bytes, weights_by_kind, workspace
from deepzig.compiler.pipeline import run_pipeline
from deepzig.compiler.plan import Plan, plan_graph
from deepzig.compiler.trace import Bounds
from deepzig.ir import Module
from deepzig.ir.text import parse
from deepzig.models import random_checkpoint
from deepzig.models.presets import PRESETS
from deepzig.targets.registry import find_targets

from .traced import BASE, config, traced


def plans_of(module: Module) -> list[Plan]:
    (target,), table = find_targets("x86-64-v3", this_machine())
    return [plan_graph(graph, module, target, table) for graph in module.graphs]


def columns(n: int, k: int) -> int:
    """Bytes of an f32 matrix [n, k] whose columns are padded to 16."""
    return -(-n // 16) * 16 * k * 4


HIDDEN, VOCAB, HEADS, LAYERS = BASE["hidden_size"], BASE["vocab_size"], BASE["num_attention_heads"], 3
Q, KV, NOPE, ROPE, V = (
    BASE[f] for f in ("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
)
EXPERTS, CHOSEN, SHARED, WIDTH, DENSE = (
    BASE[f]
    for f in ("n_routed_experts", "num_experts_per_tok", "n_shared_experts", "moe_intermediate_size",
              "intermediate_size")
)  # fmt: skip
ATTENTION = (
    columns(Q + KV + ROPE, HIDDEN)
    + columns(HEADS * (NOPE + ROPE), Q)
    + HEADS * (columns(KV, NOPE) + columns(V, KV))
    + columns(HIDDEN, HEADS * V)
    + 4 * (Q + KV + Q + KV + ROPE + HIDDEN)  # two norms, three biases
)
EXPERT = 2 * columns(WIDTH, HIDDEN) + columns(HIDDEN, WIDTH)
KINDS = {
    "embeddings": VOCAB * HIDDEN * 4,
    "attention": LAYERS * ATTENTION,
    "router": 2 * (columns(EXPERTS, HIDDEN) + 4 * EXPERTS),
    "experts": 2 * EXPERTS * EXPERT,
    "shared_experts": 2 * SHARED * EXPERT,
    "dense": 2 * columns(DENSE, HIDDEN) + columns(HIDDEN, DENSE),
    "head": columns(VOCAB, HIDDEN),
    "draft": 0,
    "other": 4 * (2 * LAYERS * HIDDEN + HIDDEN + ROPE // 2),
}


@pytest.fixture(scope="module")
def fused() -> Module:
    return run_pipeline(traced(config()))


def test_weights_by_kind(fused: Module) -> None:
    plans = plans_of(fused)
    kinds = weights_by_kind(plans, fused)
    assert kinds == KINDS
    assert sum(kinds.values()) == sum(map(stored_bytes, dict.fromkeys(w for plan in plans for w in plan.weights)))


def test_what_only_the_draft_reads_is_of_its_kind() -> None:
    module = run_pipeline(traced(config(num_nextn_predict_layers=1), draft=True))
    plans = plans_of(module)
    kinds = weights_by_kind(plans, module)
    main = {w for plan in plans if plan.name != "draft" for w in plan.weights}
    (draft,) = (plan for plan in plans if plan.name == "draft")
    assert kinds["draft"] == sum(stored_bytes(w) for w in draft.weights if w not in main) > 0
    assert {k: v for k, v in kinds.items() if k != "draft"} == {k: v for k, v in KINDS.items() if k != "draft"}


def test_tied_embeddings_are_stored_for_both_uses() -> None:
    module = run_pipeline(traced(config(tie_word_embeddings=True)))
    kinds = weights_by_kind(plans_of(module), module)
    assert kinds["embeddings"] == KINDS["embeddings"] + KINDS["head"] and kinds["head"] == 0


@pytest.mark.parametrize("limit", [None, 0])
def test_what_a_token_reads(limit: int | None, fused: Module) -> None:
    """Chosen experts, one row of the embeddings, all of the rest; as well where nothing is fused."""
    module = fused if limit is None else run_pipeline(traced(config()), limit=limit)
    reads = active_weights(next(plan for plan in plans_of(module) if plan.name == "decode"))
    elements = (
        HIDDEN * (VOCAB + 1)
        + LAYERS * (
            (Q + KV + ROPE) * (HIDDEN + 1) + HEADS * (NOPE + ROPE) * Q + HEADS * (NOPE + V) * KV
            + HIDDEN * HEADS * V + HIDDEN + Q + KV
        )
        + 3 * HIDDEN * DENSE
        + 2 * (EXPERTS * (HIDDEN + 1) + (CHOSEN + SHARED) * 3 * HIDDEN * WIDTH)
        + 2 * LAYERS * HIDDEN + HIDDEN + ROPE // 2
    )  # fmt: skip
    assert reads.elements == elements
    if limit is None:
        partly = {"experts": CHOSEN / EXPERTS, "embeddings": 1 / VOCAB}
        assert reads.bytes == sum(round(size * partly.get(kind, 1)) for kind, size in KINDS.items())


PARAMETERS = "param @norm: f32[300]\nparam @w: f32[23, 300]\n"
GRAPH = """
graph decode(%x: f32[n, 300], %rows: i32[r]) {rows=7}:
  %0: f32[n, 300] = rms_norm(%x, @norm) {eps=1e-06}
  %1: f32[n, 300] = add(%0, %x)
  %2: f32[r, 300] = take_rows(%1, %rows)
  %3: f32[r, 23] = linear(%2, @w)
  return %3
"""


def test_the_workspace_of_a_small_graph() -> None:
    """Two values of n rows and one of r between kernels, and the output; no kernel has scratch on the heap."""
    module = parse(PARAMETERS + GRAPH)
    plans = plans_of(module)
    n, r = 131, 17
    sizes = {"n": n, "r": r}
    planned = workspace(pooled(lower(plans), plans, sizes), plans, sizes)
    # TVM knows the bound of n from the graph (7), and allots the blocks of r rows by their own size
    assert planned.bytes == 4 * (2 * 7 * 300 + r * 300 + r * 23)
    assert planned.per_thread == 0


def test_workspaces_of_entry_points_are_used_in_turn() -> None:
    once, twice = parse(PARAMETERS + GRAPH), parse(PARAMETERS + GRAPH + GRAPH.replace("decode", "prefill"))
    sizes = {"n": 7, "r": 3}
    both, one = (workspace(pooled(lower(plans), plans, sizes), plans, sizes) for plans in map(plans_of, (twice, once)))
    assert len(twice.graphs) == 2 and both == one


def test_scratch_grows_with_the_rows(fused: Module) -> None:
    plans = plans_of(fused)
    lowered = lower(plans)
    both = (greatest(Bounds(rows=rows), 512) for rows in (600, 1200))
    small, large = (workspace(pooled(lowered, plans, sizes), plans, sizes) for sizes in both)
    assert large.bytes > small.bytes and 1.5 * small.per_thread < large.per_thread < 2 * small.per_thread


@pytest.mark.parametrize(("dim", "size"), [(7, 7), ("n", 5), ("p*64", 192), ("p*2*3", 18)])
def test_dimensions(dim: int | str, size: int) -> None:
    assert dimension(dim, {"n": 5, "p": 3}) == size


def test_the_greatest_call() -> None:
    bounds = Bounds(chunk=96, decode_rows=8, rows=100, batch=5, page_size=16)
    assert greatest(bounds, 100) == {"n": 100, "r": 5, "b": 5, "p": 7, "pages": 35}


MEASURE = """
import json, sys
import numpy as np
from deepzig.runtime import load

path = sys.argv[1]
manifest = json.load(open(f"{path}/manifest.json"))
bounds, memory = manifest["bounds"], manifest["memory"]
rows, batch, chunk = bounds["rows"], bounds["batch"], bounds["chunk"]
model = load(path, threads=2, cache_tokens=batch * bounds["page_size"])

def anonymous():
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("RssAnon"))

def call(entry, rows, each):
    sequences = rows // each
    table = np.repeat(np.arange(sequences)[:, None], -(-rows // bounds["page_size"]), 1)
    model.backend.call(entry, {
        "tokens": np.full(rows, 7), "seq": np.repeat(np.arange(sequences), each),
        "pos": np.tile(np.arange(each), sequences), "block_table": table, "out_rows": np.arange(sequences) * each,
    })

call("decode", 1, 1)
before = anonymous()
call("prefill", rows, chunk)
call("decode", rows, rows // batch)
print(anonymous() - before, memory["workspace_bytes"] + 2 * memory["workspace_bytes_per_thread"])
"""


@pytest.mark.slow
def test_the_workspace_is_what_a_process_takes(tmp_path: Path) -> None:
    """Measured growth of the process from a call with one row to calls at the bounds."""
    sizes = {"hidden_size": 1024, "num_attention_heads": 16, "num_key_value_heads": 16}
    random_checkpoint.write(tmp_path / "model", {**PRESETS["tiny"], **sizes})
    bounds = Bounds(chunk=2048, decode_rows=64, rows=4096, batch=64)
    compile_model(tmp_path / "model", tmp_path / "out", Options(bounds=bounds))
    command: Sequence[str | Path] = [sys.executable, "-P", "-c", MEASURE, tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    grown, planned = map(int, done.stdout.split())
    assert 0.9 * planned < grown < 1.1 * planned, (grown, planned)
