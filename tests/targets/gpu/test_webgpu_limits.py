"""What models ask of WebGPU: no more than every adapter has, and few dispatches for a token."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest

from deepzig.artifacts.machines import Machine
from deepzig.compiler.arena import arena, with_logits
from deepzig.compiler.memory import greatest, stored_bytes
from deepzig.compiler.pipeline import run_pipeline
from deepzig.compiler.plan import Plan, plan_graph
from deepzig.compiler.precision import headwise_formats, parse_quant
from deepzig.compiler.trace import Bounds, trace
from deepzig.models.families import parse_config
from deepzig.models.fields import Fields
from deepzig.models.presets import PRESETS, V2_LITE, V3
from deepzig.targets.gpu.device import WEBGPU, GpuTarget
from deepzig.targets.gpu.lowering import LOWERINGS
from deepzig.targets.registry import find_targets

from .webgpu_plan import compiled, dispatches

TARGET = GpuTarget(WEBGPU, frozenset(), "x86_64-linux", "webgpu")
BOUNDS = Bounds(chunk=64, decode_rows=8, rows=64, batch=4, page_size=64)
PER_LAYER = 12


def plans(config: dict[str, Any], dtype: str, quant: str | None) -> list[Plan]:
    c = parse_config(Fields(config, "test"))
    rule = parse_quant(quant, headwise_formats(c, TARGET.headwise))
    module = run_pipeline(trace(c, dtype, BOUNDS, False, False, rule))
    return [plan_graph(graph, module, TARGET, LOWERINGS) for graph in module.graphs]


@pytest.mark.parametrize(("dtype", "quant"), [("f16", None), ("f32", "q8"), ("f32", "q4")])
def test_dispatches_of_a_token(dtype: str, quant: str | None) -> None:
    made = plans(PRESETS["tiny"], dtype, quant)
    [decode] = [plan for plan in made if plan.name == "decode"]
    code = compiled([decode], TARGET)
    rows = {"n": 1, "r": 1, "b": 1, "p": 40, "pages": 50}
    shapes = [tuple(rows.get(str(d), 0) or int(d) for d in t.type.shape) for t in (*decode.inputs, *decode.states)]
    counts = Counter(layer for layer, _ in dispatches(decode, code, shapes))
    assert counts.pop(None) == 4  # the embedding, the angles, the row that is wanted, and its logits
    assert set(counts) == {0, 1, 2, 3} and max(counts.values()) <= PER_LAYER


SHAPES = [(V2_LITE, 2, "f16", None), (V2_LITE, 2, "f32", "q4"), (V3, 4, "f16", "q8"), (V3, 4, "f32", "q4")]


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "layers", "dtype", "quant"), SHAPES)
def test_kernels_of_true_models_keep_to_the_default_limits(
    preset: dict[str, Any], layers: int, dtype: str, quant: str | None
) -> None:
    """Compiling refuses a kernel that asks for more, buffers of weights among it."""
    fewer = {"n_routed_experts": min(preset["n_routed_experts"], 64)}  # a shard more is a kernel more
    made = plans({**preset, **fewer, "num_hidden_layers": layers}, dtype, quant)
    code = compiled(made, TARGET)
    weights = [t.type for plan in made for t in plan.weights.values()]
    assert max(4 * math.prod(map(int, t.shape)) for t in weights if t.dtype in ("f32", "u32")) <= 128 << 20
    assert len(code.shaders) > 40


@pytest.mark.parametrize(("dtype", "quant"), [("f16", None), ("f32", "q4")])
def test_no_buffer_of_v2_lite_is_larger_than_a_binding(dtype: str, quant: str | None) -> None:
    """Weights and values with the bounds that artifacts have by default; each layer is as the second."""
    c = parse_config(Fields({**V2_LITE, "num_hidden_layers": 2}, "test"))
    rule = parse_quant(quant, headwise_formats(c, TARGET.headwise))
    module = run_pipeline(trace(c, dtype, Bounds(), False, False, rule))
    (target,), table = find_targets("webgpu", Machine("x86_64-linux", frozenset()))
    made = [plan_graph(graph, module, target, table) for graph in module.graphs]
    weights = {weight for plan in made for weight in plan.weights}
    assert max(map(stored_bytes, weights)) <= 128 << 20
    room = arena(made, with_logits(greatest(Bounds(), c.max_position_embeddings), c.vocab_size), target.binding_bytes)
    assert max(room.blocks) <= target.binding_bytes == 128 << 20
