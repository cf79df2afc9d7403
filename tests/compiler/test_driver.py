"""From checkpoint to artifact: progress, interruption, and memory that stays flat."""

from __future__ import annotations

import json
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deepzig.artifacts.cpu_features import this_machine
from deepzig.artifacts.reader import map_weights, open_artifact
from deepzig.compiler.driver import compile_model, fuse
from deepzig.compiler.options import Options
from deepzig.compiler.plan import plan_graph
from deepzig.compiler.weights import BLOCK, WeightSource, convert
from deepzig.errors import DeepZigError
from deepzig.ir.interpret import round_to
from deepzig.models.files import Stored
from deepzig.targets.registry import DEFAULT, find_targets

from ..models.folders import DATA, config, random_weights, stacked, write


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write(tmp_path_factory.mktemp("driver") / "model", random_weights(config(), 41), shards=2)
    (folder / "tokenizer_config.json").write_text('{"bos_token": "b"}')
    return folder


def test_progress_and_what_is_copied(model: Path, tmp_path: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    report = compile_model(model, tmp_path / "out", Options(), lambda *call: calls.append(call))
    stages = list(dict.fromkeys(stage for stage, _, _ in calls))
    assert stages == ["fuse", "kernels", "check", "weights"]
    for stage in stages:
        done = [d for s, d, _ in calls if s == stage]
        assert len({t for s, _, t in calls if s == stage}) == 1
        assert done == sorted(set(done)) and done[-1] == calls[[s for s, _, _ in calls].index(stage)][2]
    assert [s for s, _, _ in calls] == sorted([s for s, _, _ in calls], key=stages.index)
    assert calls[-1] == ("weights", report.weights_bytes, report.weights_bytes)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert "tokenizer_config.json" in manifest["files"] and "tokenizer.json" not in manifest["files"]
    assert manifest["model"]["name"] == "model"


@pytest.mark.parametrize("moment", [("fuse", 1), ("kernels", 0), ("check", 0), ("weights", None)])
def test_interrupted_at_any_stage(moment: tuple[str, int | None], model: Path, tmp_path: Path) -> None:
    """Nothing stays, whatever was there before does."""

    def interrupt(stage: str, done: int, total: int) -> None:
        if stage == moment[0] and moment[1] in (None, done):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compile_model(model, tmp_path / "out", Options(), interrupt)
    assert not list(tmp_path.iterdir())


class Spy:
    """Counts the bytes that were read from a checkpoint and are still held."""

    def __init__(self) -> None:
        self.live = self.peak = self.largest = 0

    def watch(self, array: Any) -> None:
        owner = array if array.base is None else array.base
        self.largest = max(self.largest, owner.nbytes)
        self.live += owner.nbytes
        self.peak = max(self.peak, self.live)
        weakref.finalize(owner, self.free, owner.nbytes)

    def free(self, size: int) -> None:
        self.live -= size


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_a_few_pieces_are_held_at_once(
    dtype: str, fused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One matrix of each source, and the one that follows: never a stack of experts."""
    sizes = {"n_routed_experts": 12, "moe_intermediate_size": 61, "hidden_size": 64}
    weights = random_weights(config(**sizes), 42, "bf16")
    model = write(tmp_path, stacked(weights) if fused else weights, {**DATA, **sizes})
    opened, module = fuse(model, Options(dtype=dtype))
    (target,), table = find_targets(DEFAULT, this_machine())
    spy, read = Spy(), Stored.read

    def watched(stored: Stored, *arguments: Any) -> Any:
        array = read(stored, *arguments)
        spy.watch(array)
        return array

    monkeypatch.setattr(Stored, "read", watched)
    source = WeightSource(module, opened.checkpoint)
    total = 0
    for graph in module.graphs:
        for weight in plan_graph(graph, module, target, table).weights:
            for chunk in source.packed(weight):
                total += chunk.nbytes
    del chunk
    stack = 12 * 61 * 64 * 2
    assert spy.largest <= 2 * 61 * 64 * 2 + 67 * 64 * 2 < stack
    assert spy.peak <= 5 * spy.largest
    assert total > 3 * stack and spy.live == 0


def exact(bits: np.ndarray, dtype: str) -> np.ndarray:
    """The values of stored bits, f32."""
    if dtype == "bf16":
        return (bits.astype(np.uint32) << 16).view(np.float32)
    return bits.view(np.float16).astype(np.float32) if dtype == "f16" else bits


@pytest.mark.parametrize("wanted", ["f32", "bf16", "f16"])
@pytest.mark.parametrize("stored", ["f32", "bf16", "f16"])
def test_conversion_rounds_to_nearest_even(stored: str, wanted: str) -> None:
    rng = np.random.default_rng(43)
    values = rng.standard_normal((3, BLOCK // 2 + 11)).astype(np.float32)
    values[0, :3] = (1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-11)  # ties
    x = {"f32": values, "f16": values.astype(np.float16), "bf16": round_to(values, "bf16").view(np.uint32) >> 16}[
        stored
    ]
    x = x.astype(np.uint16) if stored == "bf16" else x
    got = convert(x, stored, wanted, "w")
    assert got.shape == values.shape
    assert np.array_equal(exact(got, wanted), round_to(exact(x, stored), wanted))


def test_a_weight_too_large_for_f16() -> None:
    x = np.linspace(1, 2, 3 * BLOCK, dtype=np.float32)
    x[-5] = 65520.0  # rounds to infinity
    with pytest.raises(DeepZigError) as error:
        convert(x, "f32", "f16", "lm_head.weight")
    assert str(error.value) == "a weight is too large for f16\n  at: lm_head.weight\n  fix: compile with --dtype bf16"
    x[-5] = 65519.0
    assert exact(convert(x, "f32", "f16", "w"), "f16")[-5] == 65504.0


@pytest.mark.slow
def test_equal_weights_give_equal_artifacts(tmp_path: Path) -> None:
    """However they are stored."""
    weights = random_weights(config(), 44)
    stores: Iterator[Path] = iter(
        [write(tmp_path / "a" / "model", weights), write(tmp_path / "b" / "model", stacked(weights), shards=3)]
    )
    packed = []
    for folder in stores:
        compile_model(folder, folder.parent / "out", Options(dtype="f32"))
        packed.append(map_weights(open_artifact(folder.parent / "out")))
    assert packed[0].keys() == packed[1].keys()
    assert all(np.array_equal(packed[0][name][1], packed[1][name][1]) for name in packed[0])


@pytest.mark.slow
def test_memory_stays_below_two_copies_of_the_largest_tensor(tmp_path: Path) -> None:
    """Peak of resident memory, mapped libraries included: under twice the largest tensor and 1 GiB."""
    sizes = {"vocab_size": 190_001, "hidden_size": 640}
    largest = 190_001 * 640 * 4
    write(tmp_path / "model", random_weights(config(**sizes), 45), {**DATA, **sizes})
    script = "import sys; from deepzig.compiler.cli import command; command(sys.argv[1:], standalone_mode=False)"
    script += "; print(open('/proc/self/status').read())"
    command = [sys.executable, "-P", "-c", script, str(tmp_path / "model"), "-o", str(tmp_path / "out"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    (peak,) = (int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("VmHWM"))
    assert peak * 1024 < 2 * largest + (1 << 30)
