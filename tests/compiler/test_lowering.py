"""Fused graphs node by node, kernel by kernel, and against the interpreter."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax

from deepzig.artifacts.cpu_features import this_machine
from deepzig.compiler.lower import lower
from deepzig.compiler.pipeline import run_pipeline
from deepzig.compiler.plan import Plan, plan_graph
from deepzig.compiler.weights import Packed, WeightSource, convert
from deepzig.ir import Module, interpret
from deepzig.models import ModelConfig
from deepzig.runtime.tensors import aligned
from deepzig.targets.registry import find_targets

from .traced import PAGES, VARIANTS, Array, config, distance, parameters, rows, states, traced

TOLERANCE = 2e-5
"""Against the interpreter on the same rounded weights and caches; a low-precision cache row may round the other way."""

SCALAR_FALLBACK = {"forced_route"}
"""Ops that may run on a plain kernel when the whole pipeline ran."""

FUSED_OPS = {
    "embed", "rope_angles", "proj", "gated_proj", "rms_norm", "latent_write", "router", "moe", "take_rows",
}  # fmt: skip


ATTENTION = {"decode": "mla_decode", "prefill": "mla_prefill", "draft": "mla_decode"}
"""Graph -> its form of attention."""


class Stored:
    """Parameters of a test in place of a checkpoint."""

    def __init__(self, values: dict[str, Array]) -> None:
        self.values = values

    def dtype(self, name: str) -> str:
        return "f32"

    def read(self, name: str) -> Array:
        return self.values[name]

    def piece(self, name: str, index: int) -> Array:
        return self.values[name][index]


def plans_of(module: Module) -> list[Plan]:
    (target,), table = find_targets("llvm", this_machine())
    return [plan_graph(graph, module, target, table) for graph in module.graphs]


def tensor(array: Array) -> Any:
    copy = aligned(array.shape, array.dtype)
    copy[...] = array
    return tvm.runtime.from_dlpack(copy)


def run(module: Module, c: ModelConfig, seed: int, route: bool, limit: int | None) -> Iterator[tuple[Array, Array]]:
    """Logits of the lowered and of the interpreted graphs."""
    rng = np.random.default_rng(seed)
    values, caches, inputs = parameters(module, rng), states(module, rng), rows(c, rng, route)
    fused = run_pipeline(module, limit=limit)
    plans = plans_of(fused)
    (target,), _ = find_targets("llvm", this_machine())
    vm = relax.VirtualMachine(target.compile(lower(plans)), tvm.cpu())
    source = WeightSource(fused, Stored(values))  # type: ignore[arg-type]

    def stored(weight: Packed) -> Any:
        data = np.concatenate([chunk.reshape(-1) for chunk in source.packed(weight)])
        return tensor(data.reshape(tuple(map(int, weight.type.shape))))

    for plan in plans:
        if plan.name == "sample":
            continue
        physical = []
        for state in plan.states:
            wide = np.zeros([PAGES if d == "pages" else int(d) for d in state.type.shape], np.float32)
            wide[..., : c.kv_lora_rank + c.qk_rope_head_dim] = caches[state.name]
            physical.append(tensor(convert(wide, "f32", state.type.dtype, state.name)))
        outputs = vm[plan.name](*(tensor(inputs[t.name]) for t in plan.inputs), *physical, *map(stored, plan.weights))
        wanted = interpret(module, plan.name, inputs, values, caches)[0]
        yield from ((got.numpy(), want) for got, want in zip(outputs, wanted, strict=True))


QUICK = [("base", "f32"), ("base", "bf16"), ("no-q-lora", "f16")]
SLOW = [(v, d) for v in VARIANTS for d in ("f32", "bf16", "f16") if (v, d) not in QUICK]


@pytest.mark.parametrize(("variant", "dtype"), [*QUICK, *(pytest.param(*p, marks=pytest.mark.slow) for p in SLOW)])
def test_kernels_agree_with_the_interpreter(variant: str, dtype: str) -> None:
    c = config(**VARIANTS[variant])
    for got, want in run(traced(c, dtype, draft=variant == "base"), c, 3, False, None):
        assert distance(got, want) <= TOLERANCE


@pytest.mark.parametrize(("limit", "route"), [(0, False), (9, True)])
def test_any_number_of_rewrites_gives_a_model_that_runs(limit: int | None, route: bool) -> None:
    c = config(num_hidden_layers=2)
    for got, want in run(traced(c, "bf16", route), c, 4, route, limit):
        assert distance(got, want) <= TOLERANCE


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("route", [False, True])
@pytest.mark.parametrize("draft", [False, True])
def test_all_nodes_of_the_fused_graphs(variant: str, route: bool, draft: bool) -> None:
    """No un-absorbed keys or values in the decode form, no op per expert, nothing left over."""
    fused = run_pipeline(traced(config(**VARIANTS[variant]), "f32", route, draft))
    extra = {"linear"} if variant == "no-q-lora" or draft else set()  # with a draft the head's input is an output
    forced = {"forced_route"} if route else set()
    for name, attention in ATTENTION.items():
        if name == "draft" and not draft:
            continue
        found = {node.op.name for node in fused.graph(name).nodes}
        assert found <= FUSED_OPS | {attention} | extra | forced
        assert attention in found
    assert {node.op.name for node in fused.graph("sample").nodes} == {"sample"}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("route", [False, True])
def test_nothing_runs_on_the_scalar_fallback_but_a_named_few(variant: str, route: bool) -> None:
    for plan in plans_of(run_pipeline(traced(config(**VARIANTS[variant]), "bf16", route, draft=True))):
        for launch in plan.launches:
            if launch.kernel_name.startswith("plain_"):
                assert launch.op in SCALAR_FALLBACK


def test_the_number_of_kernels_does_not_depend_on_the_number_of_layers() -> None:
    def kernels(layers: int) -> set[str]:
        plans = plans_of(run_pipeline(traced(config(num_hidden_layers=layers), "bf16")))
        return {launch.kernel_name for plan in plans for launch in plan.launches}

    assert kernels(2) == kernels(7)


def test_f16_refuses_what_it_cannot_hold() -> None:
    with pytest.raises(Exception, match="a weight is too large for f16"):
        convert(np.array([1.0, 7e4], np.float32), "f32", "f16", "w")


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
def test_conversions_round_to_nearest_even(dtype: str) -> None:
    import ml_dtypes

    x = np.random.default_rng(9).standard_normal(1001).astype(np.float32) * 10
    want = x.astype(ml_dtypes.bfloat16 if dtype == "bf16" else np.float16)
    bits = convert(x, "f32", dtype, "w")
    assert np.array_equal(bits, want.view(np.uint16))
    stored = bits if dtype == "bf16" else bits.view(np.float16)
    assert np.array_equal(convert(stored, dtype, "f32", "w"), want.astype(np.float32))


def test_two_kernels_of_one_name_are_refused() -> None:
    """The second would be dropped in silence, and the first run in its place."""
    plans = plans_of(run_pipeline(traced(config(), "f32")))
    launches = plans[0].launches
    first, second, *_ = {launch.kernel_name: launch.kernel for launch in launches if launch.op == "proj"}.values()
    clash = second.with_attr("global_symbol", first.attrs["global_symbol"])
    launches.append(replace(launches[0], kernel=clash))
    with pytest.raises(ValueError, match=f"two kernels are called {first.attrs['global_symbol']}"):
        lower(plans)
