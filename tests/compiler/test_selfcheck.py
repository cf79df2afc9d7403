"""Recording self-check vectors: which layers, how much is read, and which choices hang on a rounding."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deepzig.artifacts.selfcheck import Draw, Noise
from deepzig.compiler.driver import fuse
from deepzig.compiler.options import Options
from deepzig.compiler.pipeline import run_pipeline
from deepzig.compiler.selfcheck import record, sampled_layers
from deepzig.compiler.trace import Bounds
from deepzig.compiler.weights import WeightSource
from deepzig.errors import DeepZigError
from deepzig.ir import Module
from deepzig.models.checkpoint import Checkpoint
from deepzig.models.files import Stored

from ..models.folders import DATA, config, random_weights, write
from .test_driver import Spy
from .traced import config as traced_config
from .traced import traced

BOUNDS = Bounds(chunk=96, decode_rows=8, rows=96, batch=4, page_size=16)


def model(layers: int, dense: int) -> Module:
    return run_pipeline(traced(traced_config(num_hidden_layers=layers, first_k_dense_replace=dense)))


def test_all_layers_of_a_small_model() -> None:
    assert sampled_layers(model(5, 2)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("budget", "want"), [(0, [0, 3, 12]), (None, list(range(13)))])
def test_the_first_of_each_kind_and_the_last(budget: int | None, want: list[int]) -> None:
    assert sampled_layers(model(13, 3), budget) == want


def test_more_layers_for_a_larger_budget() -> None:
    """Evenly: no gap is longer than twice the shortest that the budget would allow."""
    module = model(33, 1)
    found = [sampled_layers(module, budget) for budget in (0, 200_000, 400_000, 600_000)]
    assert all(set(a) < set(b) for a, b in pairwise(found))
    assert max(np.diff(found[-1])) <= 2 * math.ceil(33 / len(found[-1])) + 1
    assert found[-1] != list(range(33))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("selfcheck") / "model", random_weights(config(**SIZES), 91), {**DATA, **SIZES})


SIZES = {"n_routed_experts": 24, "moe_intermediate_size": 61, "hidden_size": 64, "n_group": 1, "topk_group": 1}


def recorded(checkpoint: Path) -> Any:
    source, module = fuse(checkpoint, Options(dtype="f32"))
    weights = WeightSource(module, source.checkpoint)
    return record(module, weights, source.config.max_position_embeddings, BOUNDS, sampled_layers(module))


def test_few_experts_are_read_one_at_a_time(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 24 experts at most four a call, and never more than two of their matrices at once."""
    spy, read, names = Spy(), Stored.read, set[str]()

    def watched(stored: Stored, *arguments: Any) -> Any:
        array = read(stored, *arguments)
        if ".experts." in stored.entry.name:
            names.add(stored.entry.name.split(".experts.")[1].split(".")[0])
            spy.watch(array)
        return array

    monkeypatch.setattr(Stored, "read", watched)
    recorded(checkpoint)
    assert {"0", "23"} <= names and len(names) <= 6
    assert spy.peak <= 2 * 61 * 64 * 4 and spy.live == 0


def test_every_op_starts_from_what_is_known(checkpoint: Path) -> None:
    """What a kernel reads of another is forced: f32 with all bits, choices among all experts."""
    _, module = fuse(checkpoint, Options(dtype="bf16"))
    for call in recorded(checkpoint).calls:
        graph = module.graph(call.entry)
        made = graph.producers()
        read = {v.name: v for node in graph.nodes for v in node.inputs if v in made}
        assert call.forced.keys() == read.keys()
        assert all(isinstance(f, Draw if read[n].type.dtype == "i32" else Noise) for n, f in call.forced.items())
        assert {f.experts for f in call.forced.values() if isinstance(f, Draw)} <= {24}
        seeds = [f.seed for f in call.forced.values()]
        assert len(set(seeds)) == len(seeds)
        assert call.sketches.keys() | {n for c in call.choices for n in c.values} == {v.name for v in made}


def test_choices_that_hang_on_a_rounding(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where an expert that was not chosen is made as good as the last that was, that row is told, and no other."""
    module = fuse(checkpoint, Options(dtype="f32"))[1]
    before = recorded(checkpoint).calls[0]
    (router,) = (node for node in module.graph("prefill").nodes if node.op.name == "router")
    x = before.forced[router.inputs[0].name].make() if router.inputs[0] else np.empty(0)
    row, read = 17, Checkpoint.read

    def even(self: Checkpoint, name: str) -> Any:
        values = read(self, name)
        if name.endswith("gate.weight"):
            logits = values @ x[row]
            _, last, next_one = np.argsort(-logits)[:3]
            values[next_one] += (logits[last] - logits[next_one]) * x[row] / (x[row] @ x[row])
        return values * 0 if name.endswith("e_score_correction_bias") else values

    monkeypatch.setattr(Checkpoint, "read", even)
    (choice,) = recorded(checkpoint).calls[0].choices
    assert row in choice.unsure and len(choice.unsure) <= 2
    assert row not in before.choices[0].unsure


def test_values_that_are_no_numbers(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = Checkpoint.read

    def huge(self: Checkpoint, name: str) -> Any:
        return read(self, name) * np.float32(3e38 if "1.mlp.experts.5" in name or "1.input_layernorm" in name else 1)

    monkeypatch.setattr(Checkpoint, "read", huge)
    with pytest.raises(DeepZigError) as caught, np.errstate(all="ignore"):
        recorded(checkpoint)
    assert caught.value.what == "the model computes values that are no numbers"
    assert caught.value.where.startswith("prefill, layer 1, proj (deepzig.models.definition:")
    assert caught.value.hint == "compile with another --dtype"


def test_progress(checkpoint: Path) -> None:
    source, module = fuse(checkpoint, Options())
    told: list[tuple[int, int]] = []
    weights = WeightSource(module, source.checkpoint)
    record(module, weights, 512, BOUNDS, [0, 1], lambda *step: told.append(step))
    assert told == [(0, 3), (1, 3), (2, 3), (3, 3)]
