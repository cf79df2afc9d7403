"""Small models, compiled for GPUs and run on software ones, against the interpreter."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax

from deepzig.compiler.lower import lower
from deepzig.compiler.pipeline import run_pipeline
from deepzig.compiler.plan import Plan, plan_graph
from deepzig.compiler.weights import Packed, WeightSource, convert
from deepzig.ir import Module, interpret
from deepzig.models import ModelConfig
from deepzig.targets.gpu.device import GpuTarget
from deepzig.targets.gpu.lowering import LOWERINGS

from ...compiler.test_lowering import TOLERANCE, Stored
from ...compiler.traced import PAGES, VARIANTS, Array, config, distance, parameters, rows, states, traced
from .conftest import GPUS
from .software import cuda_features, load

ROUNDED = 2e-2
"""Where rows are rounded to the two bytes of the weights, as matrix units need them."""


def target_of(device: str) -> GpuTarget:
    features = cuda_features() if device == "cuda" else frozenset()
    return GpuTarget(GPUS[device], features, f"{platform.machine()}-linux", device)


def run(
    module: Module,
    c: ModelConfig,
    target: GpuTarget,
    folder: Path,
    seed: int,
    limit: int | None,
    route: bool = False,
    planned: GpuTarget | None = None,
) -> Iterator[tuple[Array, Array]]:
    """Logits of the lowered and of the interpreted graphs; what is `planned` for another target runs on this one."""
    if not target.features:
        load()
    rng = np.random.default_rng(seed)
    values, caches, inputs = parameters(module, rng), states(module, rng), rows(c, rng, route)
    fused = run_pipeline(module, limit=limit)
    plans = [plan_graph(graph, fused, planned or target, LOWERINGS) for graph in fused.graphs]
    path = folder / "model.so"
    target.compile(lower(plans)).export_library(str(path))
    place = tvm.device(target.device)
    vm = relax.VirtualMachine(tvm.runtime.load_module(str(path)), place)
    source = WeightSource(fused, Stored(values))  # type: ignore[arg-type]

    def stored(weight: Packed) -> Any:
        data = np.concatenate([chunk.reshape(-1) for chunk in source.packed(weight)])
        return tvm.runtime.tensor(data.reshape(tuple(map(int, weight.type.shape))), place)

    for plan in plans:
        if plan.name != "sample":
            arguments = [tvm.runtime.tensor(inputs[t.name], place) for t in plan.inputs]
            outputs = vm[plan.name](*arguments, *_caches(plan, c, caches, place), *map(stored, plan.weights))
            damage = tvm.get_global_func("deepzig.shim.damage")()
            assert not damage, damage
            wanted = interpret(module, plan.name, inputs, values, caches)[0]
            yield from ((got.numpy(), want) for got, want in zip(outputs, wanted, strict=True))


def _caches(plan: Plan, c: ModelConfig, caches: dict[str, Array], place: Any) -> Iterator[Any]:
    for state in plan.states:
        wide = np.zeros([PAGES if d == "pages" else int(d) for d in state.type.shape], np.float32)
        wide[..., : c.kv_lora_rank + c.qk_rope_head_dim] = caches[state.name]
        yield tvm.runtime.tensor(convert(wide, "f32", state.type.dtype, state.name), place)


PLAIN = [("base", "bf16"), ("softmax", "f16"), ("one-group", "f32")]
FUSED = [("base", "f32"), ("no-q-lora", "f32"), ("softmax", "f32"), ("base", "bf16"), ("one-group", "f16")]


def quick_first(cases: list[tuple[str, str]]) -> list[Any]:
    return [cases[0], *(pytest.param(*case, marks=pytest.mark.slow) for case in cases[1:])]


@pytest.mark.parametrize(("variant", "dtype"), quick_first(PLAIN))
@pytest.mark.parametrize("device", GPUS)
def test_unfused_graphs_agree_with_the_interpreter(tmp_path: Path, device: str, variant: str, dtype: str) -> None:
    """No pass has run: nearly all of it are plain kernels."""
    c = config(**{**VARIANTS[variant], "num_hidden_layers": 2})
    for got, want in run(traced(c, dtype), c, target_of(device), tmp_path, 4, 0):
        assert distance(got, want) <= (TOLERANCE if dtype == "f32" else ROUNDED)


@pytest.mark.parametrize(("variant", "dtype"), quick_first(FUSED))
@pytest.mark.parametrize("device", GPUS)
def test_fused_graphs_agree_with_the_interpreter(tmp_path: Path, device: str, variant: str, dtype: str) -> None:
    c = config(**{**VARIANTS[variant], "num_hidden_layers": 2})
    for got, want in run(traced(c, dtype, draft=variant == "base"), c, target_of(device), tmp_path, 3, None):
        assert distance(got, want) <= (TOLERANCE if dtype == "f32" else ROUNDED)


@pytest.mark.parametrize("device", GPUS)
def test_forced_routes_and_some_rewrites(tmp_path: Path, device: str) -> None:
    c = config(num_hidden_layers=2)
    for got, want in run(traced(c, "f32", route=True), c, target_of(device), tmp_path, 5, 9, route=True):
        assert distance(got, want) <= TOLERANCE


@pytest.mark.slow
def test_weights_in_shards_are_as_good_as_whole_ones(tmp_path: Path) -> None:
    """Weights of 70,000 bytes at most: 273 rows of the embedding, five experts. Other buffers have the usual room."""
    target = target_of("cuda")
    planned = replace(target, gpu=replace(target.gpu, binding_bytes=70_000))
    c = config(num_hidden_layers=2, vocab_size=1201)
    for got, want in run(traced(c, "f32"), c, target, tmp_path, 6, None, planned=planned):
        assert distance(got, want) <= TOLERANCE
