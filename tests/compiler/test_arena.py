"""Places of values in memory, and the plan that tells of them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from itertools import combinations
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from deepzig.artifacts.cpu_features import this_machine
from deepzig.compiler.arena import ALIGNMENT, Arena, arena, bytes_of, check_fits, with_logits
from deepzig.compiler.memory import greatest
from deepzig.compiler.pipeline import run_pipeline
from deepzig.compiler.plan import Launch, Plan, Tensor, plan_graph
from deepzig.compiler.plan_json import plan_json
from deepzig.compiler.trace import Bounds
from deepzig.errors import DeepZigError
from deepzig.ir import Graph, TensorType
from deepzig.targets.registry import find_targets

from .traced import config, traced

NODE: Any = SimpleNamespace(op=SimpleNamespace(name="proj"))

SIZES = {"n": 13, "r": 3, "b": 2, "p": 5, "pages": 10}


def random_plan(seed: int) -> Plan:
    """Launches that read any of the last values, and make one or two of random sizes or write to one again."""
    rng = np.random.default_rng(seed)
    values = [Tensor(f"in{i}", TensorType("f32", ("n", int(rng.integers(1, 40))))) for i in range(3)]
    plan = Plan(f"graph{seed}", Graph("graph", (), (), (), {}), tuple(values), ())
    for number in range(40):
        args = tuple(values[-int(rng.integers(1, min(12, len(values)) + 1))] for _ in range(rng.integers(1, 4)))
        types = (TensorType("f32", (str(rng.choice(["n", "r"])), int(rng.integers(1, 90)))) for _ in range(2))
        outputs = tuple(Tensor(f"t{number}.{i}", type_) for i, type_ in enumerate(types))[: int(rng.integers(1, 3))]
        again = number > 5 and number % 4 == 0
        if again:
            written = values.pop(-int(rng.integers(1, 6)))  # nobody may read what it was
            args, outputs = (*(a for a in args if a is not written), written), (Tensor(f"t{number}", written.type),)
        plan.launches.append(Launch(None, args, outputs, again, NODE))
        values += outputs
    plan.outputs = (values[-1], values[-5])
    return plan


def versions(plan: Plan, tensor: Tensor) -> set[Tensor]:
    """A tensor, and what launches made of it in place."""
    found = {tensor}
    for launch in plan.launches:
        if launch.in_place and launch.args[-1] in found:
            found.add(launch.outputs[0])
    return found


def interval(plan: Plan, tensor: Tensor) -> tuple[int, int]:
    """The launches between which a tensor's bytes must not change."""
    every = versions(plan, tensor)
    made = [i for i, launch in enumerate(plan.launches) if every.intersection(launch.outputs)]
    used = [i for i, launch in enumerate(plan.launches) if every.intersection(launch.args)]
    begin = min(made, default=-1) if tensor not in plan.inputs else -1
    return begin, max([begin, *made, *used])


def placed(plan: Plan) -> set[Tensor]:
    """All tensors that need a place of their own."""
    return {*plan.inputs, *(t for launch in plan.launches if not launch.in_place for t in launch.outputs)}


def together(plan: Plan, a: Tensor, b: Tensor) -> bool:
    """Whether two tensors live at the same time; outputs always do."""
    (first, last), (begin, end) = interval(plan, a), interval(plan, b)
    outputs = any(versions(plan, t).intersection(plan.outputs) for t in (a, b))
    return (first <= end and begin <= last) or outputs


@pytest.mark.parametrize("seed", range(6))
def test_what_lives_together_lies_apart(seed: int) -> None:
    plan = random_plan(seed)
    room = arena([plan], SIZES)
    offsets = {t: at for t, (block, at) in room.places.items() if block == 0}
    ends = {t: at + bytes_of(t, SIZES) for t, at in offsets.items()}
    assert room.blocks == (max(ends.values()),) and all(at % ALIGNMENT == 0 for at in offsets.values())
    tensors = placed(plan)
    assert offsets.keys() == room.places.keys() == tensors
    for a, b in combinations(tensors, 2):
        if together(plan, a, b):
            assert ends[a] <= offsets[b] or ends[b] <= offsets[a]
    assert room.bytes < sum(bytes_of(t, SIZES) for t in tensors) / 2


@pytest.mark.parametrize("seed", range(6))
def test_what_lives_together_lies_in_different_buffers(seed: int) -> None:
    """So no launch reads and writes one."""
    plans = [random_plan(seed), random_plan(seed + 20)]
    room = arena(plans, SIZES, 1 << 20)
    assert {at for _, at in room.places.values()} == {0}
    for plan in plans:
        for tensor in placed(plan):
            assert bytes_of(tensor, SIZES) <= room.blocks[room.places[tensor][0]]
        for a, b in combinations(placed(plan), 2):
            assert not together(plan, a, b) or room.places[a] != room.places[b]
    assert len(room.blocks) < len(room.places) / 2
    assert room.bytes < sum(bytes_of(t, SIZES) for t in room.places) / 2
    kept = [room.places[t] for plan in plans for t in placed(plan) if versions(plan, t).intersection(plan.outputs)]
    assert len(set(kept)) == len(kept)


def test_a_value_that_fits_no_buffer() -> None:
    with pytest.raises(DeepZigError) as caught:
        arena([random_plan(1)], SIZES, 4096)
    assert re.fullmatch(
        r"(proj|an input|an output) in graph1 takes a buffer of \d+ bytes, the device has 4096\n  at: --target\n"
        r"  fix: choose a smaller --chunk, or tell the limits of the device", str(caught.value),
    )  # fmt: skip


def test_outputs_of_entry_points_outlive_each_other() -> None:
    plans = [random_plan(7), random_plan(8)]
    room = arena(plans, SIZES)
    outputs = {t for plan in plans for t in placed(plan) if versions(plan, t).intersection(plan.outputs)}
    assert len(outputs) == 4
    kept = sum(bytes_of(t, SIZES) for t in outputs)
    assert {room.places[t][1] < kept for t in outputs} == {True}
    assert {at < kept for t, (_, at) in room.places.items() if t not in outputs} == {False}
    alone = [arena([p], SIZES).bytes - sum(bytes_of(t, SIZES) for t in outputs & placed(p)) for p in plans]
    assert room.bytes == kept + max(alone)


def test_rows_of_logits() -> None:
    """As many as 64 MiB hold, from one of each sequence to all rows."""
    sizes = greatest(Bounds(), 1024)
    assert with_logits(sizes, 512) == {**sizes, "r": 512}
    assert with_logits(sizes, 102400)["r"] == (64 << 20) // 409600
    assert with_logits(sizes, 1 << 20)["r"] == sizes["b"]


def test_what_does_not_fit() -> None:
    check_fits((1 << 32) - 1)
    with pytest.raises(DeepZigError) as caught:
        check_fits(5 << 30)
    assert str(caught.value) == (
        "weights and values take 5.0 GiB, and the target's memory has 4 GiB\n  at: --target\n"
        "  fix: quantise the model with --quant q4, or choose another target"
    )


def test_the_plan_tells_all_launches() -> None:
    (target,), table = find_targets("wasm", this_machine())
    module = run_pipeline(traced(config()))
    plans = [plan_graph(graph, module, target, table) for graph in module.graphs]
    room = arena(plans, SIZES)
    told = json.loads(plan_json(plans, room, SIZES))
    assert told["sizes"] == {"n": 13, "r": 3, "b": 2, "p": 5} and told["blocks"] == list(room.blocks)
    assert list(told["entry_points"]) == [plan.name for plan in plans]
    for plan in plans:
        check(told["entry_points"][plan.name], plan, room)


def check(entry: Mapping[str, list[object]], plan: Plan, room: Arena) -> None:
    """Tensors by their numbers; a state that is written is the state that is read afterwards."""
    tensors = entry["tensors"]
    stored = {t.name for t in (*plan.states, *plan.weights.values())}
    versions = {launch.outputs[0]: launch.args[-1] for launch in plan.launches if launch.in_place}

    def told(tensor: Tensor) -> dict[str, object]:
        while tensor in versions:
            tensor = versions[tensor]
        shape = {"dtype": tensor.type.dtype, "shape": list(tensor.type.shape)}
        if tensor.name in stored:
            return {**shape, "state" if tensor in plan.states else "weight": tensor.name}
        return {**shape, "at": list(room.places[tensor])}

    def arguments(launch: Launch) -> list[dict[str, object]]:
        return list(map(told, launch.args if launch.in_place else (*launch.args, *launch.outputs)))

    calls = [{"kernel": launch.kernel_name, "arguments": arguments(launch)} for launch in plan.launches]
    assert calls == [{**call, "arguments": [tensors[i] for i in call["arguments"]]} for call in entry["calls"]]  # type: ignore[dict-item,index]
    for name, wanted in (("inputs", plan.inputs), ("outputs", plan.outputs)):
        assert [tensors[i] for i in entry[name]] == list(map(told, wanted))  # type: ignore[call-overload]
