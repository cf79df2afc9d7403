"""Small models as WGSL on software Vulkan, against the interpreter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from deepzig.compiler.pipeline import run_pipeline
from deepzig.compiler.plan import plan_graph
from deepzig.compiler.weights import WeightSource, convert
from deepzig.ir import Module, interpret
from deepzig.targets.gpu.device import WEBGPU, GpuTarget
from deepzig.targets.gpu.lowering import LOWERINGS

from ...compiler.test_lowering import TOLERANCE, Stored
from ...compiler.traced import VARIANTS, Array, config, distance, parameters, rows, states, traced
from .test_models import quick_first
from .vulkan import device
from .webgpu_plan import Model, stored

TARGET = GpuTarget(WEBGPU, frozenset(), "x86_64-linux", "webgpu")


def cache(name: str, type_: Any, values: Array, dtype: str) -> Array:
    """A cache as the device has it."""
    wide = np.zeros([*values.shape[:-1], -(-values.shape[-1] // 16) * 16], np.float32)
    wide[..., : values.shape[-1]] = values
    words = {"f32": np.float32, "u32": np.uint32}[type_.dtype]
    made: Array = convert(wide, "f32", dtype, name).view(words)
    return made


FUSED = [("no-q-lora", "f32"), ("base", "f32"), ("softmax", "f32"), ("base", "bf16"), ("one-group", "f16")]


@pytest.mark.parametrize(("variant", "dtype"), quick_first(FUSED))
def test_fused_graphs_agree_with_the_interpreter(variant: str, dtype: str) -> None:
    device()
    c = config(**{**VARIANTS[variant], "num_hidden_layers": 2})
    module: Module = traced(c, dtype, draft=variant == "base")
    rng = np.random.default_rng(3)
    values, caches, inputs = parameters(module, rng), states(module, rng), rows(c, rng)
    fused = run_pipeline(module)
    plans = [plan_graph(graph, fused, TARGET, LOWERINGS) for graph in fused.graphs]
    weights = stored(plans, WeightSource(fused, Stored(values)))  # type: ignore[arg-type]
    for plan in plans:
        if plan.name == "sample":
            continue
        held = {t.name: cache(t.name, t.type, caches[t.name], dtype) for t in plan.states}
        outputs = Model([plan], TARGET, weights, held)(plan.name, inputs)
        wanted = interpret(module, plan.name, inputs, values, caches)[0]
        for got, want in zip(outputs, wanted, strict=True):
            assert distance(got, want) <= TOLERANCE
