"""Limits of a real artifact, its kernels, and the command from end to end without peers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import cpu
import kernel_times
import pytest
import tvm  # noqa: F401 - its runtime library, before an artifact brings a copy that other tests could not live with
from click.testing import CliRunner
from limits import active_params, projected_bytes, work
from protocol import Case
from shapes import FORMATS, GIB, Shape, artifact, experts_that_fit, gguf, shapes

from deepzig.artifacts.manifest import Manifest
from deepzig.artifacts.reader import open_artifact
from deepzig.models.families import parse_config
from deepzig.models.fields import Fields
from deepzig.models.presets import PRESETS, V2_LITE, V3
from deepzig.runtime.bench.cases import Decode, Prefill
from deepzig.runtime.bench.results import decode_bytes, prefill_flops
from deepzig.runtime.machine import Memory

CONFIG: dict[str, Any] = {**PRESETS["tiny"], "vocab_size": 613, "n_shared_experts": 2}
SHAPE = Shape("tiny", CONFIG, "a toy", {**CONFIG, "num_hidden_layers": 9})
CASES = Case(batch=1, depth=31, steps=5), Case(batch=3, depth=9, steps=5), Case(prompt=70)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a model is kept, compiled."""
    made = tmp_path_factory.mktemp("bench")
    assert artifact(SHAPE, FORMATS[0], made, print) == made / "tiny" / "bf16"
    return made


@pytest.fixture(scope="module")
def manifest(folder: Path) -> Manifest:
    return open_artifact(folder / "tiny" / "bf16").manifest


def test_work_is_that_of_deepzig_bench(manifest: Manifest) -> None:
    assert work(manifest, CONFIG, Case(batch=1, depth=31, steps=5)) == decode_bytes(manifest, Decode(1, 31), 5)
    assert work(manifest, CONFIG, Case(prompt=77)) == prefill_flops(manifest, Prefill(77))


def test_a_batch_reads_each_expert_once(manifest: Manifest) -> None:
    memory = manifest.memory
    rest = memory["active_bytes_per_token"] - memory["experts_bytes"] * 2 / 8
    cache = memory["cache_bytes_per_token"]
    two = work(manifest, CONFIG, Case(batch=2, depth=10, steps=1))
    assert two == pytest.approx(rest + memory["experts_bytes"] * (1 - 0.75**2) + 2 * 11 * cache, rel=1e-12)
    many = work(manifest, CONFIG, Case(batch=300, depth=0, steps=1))
    assert many == pytest.approx(rest + memory["experts_bytes"] + 300 * cache, rel=1e-12)


def test_published_models_have_their_published_sizes() -> None:
    """Activated parameters: 37 billion (arXiv:2412.19437) with the embeddings, 2.4 of V2-Lite (arXiv:2405.04434)."""
    v3, lite = (parse_config(Fields(dict(data), "x")) for data in (V3, V2_LITE))
    assert (active_params(v3) + 129280 * 7168) / 1e9 == pytest.approx(37.5, abs=0.1)
    assert active_params(lite) / 1e9 == pytest.approx(2.4, abs=0.1)


def test_a_whole_model_is_projected_from_its_bytes(manifest: Manifest) -> None:
    same = projected_bytes(manifest, CONFIG, 0)
    row_of_embeddings = CONFIG["hidden_size"] * 2
    assert same == pytest.approx(manifest.memory["active_bytes_per_token"] - row_of_embeddings, rel=1e-3)
    deep = projected_bytes(manifest, {**CONFIG, "num_hidden_layers": 8}, 100)
    shallow = projected_bytes(manifest, {**CONFIG, "num_hidden_layers": 8}, 0)
    assert deep - shallow == pytest.approx(100 * 2 * manifest.memory["cache_bytes_per_token"], rel=1e-12)


def test_experts_that_fit() -> None:
    each = 3 * 2 * 3 * 7168 * 2048
    sizes = {64 * each + 4 * GIB: 64, 64 * each + 4 * GIB - 1: 32, 999 * GIB: 256, GIB: 16}
    assert {room: experts_that_fit(Memory(None, room)) for room in sizes} == sizes
    layer = shapes(Memory(None, 64 * each + 4 * GIB))[-1]
    assert layer.config["n_routed_experts"] == 64 and "64 of its 256 experts" in layer.note


def test_what_is_there_is_made_again_only_when_it_is_older(folder: Path, tmp_path: Path) -> None:
    said: list[str] = []
    assert artifact(SHAPE, FORMATS[0], folder, said.append) and not said
    unknown = cpu.Format("q5", ("--quant", "q5"))
    assert artifact(SHAPE, unknown, folder, said.append) is None
    assert said[0].startswith("compiling ") and "q5" in said[1] and said[1].endswith("; left out")

    files = gguf(SHAPE, "Q8_0", tmp_path, said.append)
    before = files.stat().st_mtime_ns
    assert gguf(SHAPE, "Q8_0", tmp_path, said.append).stat().st_mtime_ns == before
    other = Shape("tiny", {**CONFIG, "n_routed_experts": 6})
    assert gguf(other, "Q8_0", tmp_path, said.append).stat().st_mtime_ns > before
    assert [text.split()[0] for text in said[2:]] == ["making", "writing"] * 2


def test_kernels_read_what_a_token_reads(folder: Path, manifest: Manifest) -> None:
    case = Case(batch=1, depth=130, steps=3)
    rows = kernel_times.decode_kernels("x", folder / "tiny" / "bf16", CONFIG, case, 2, 1)
    calls = open_artifact(folder / "tiny" / "bf16").build.calls["decode"]
    found = {row.kernel: row for row in rows}
    for name in {call.kernel for call in calls}:
        assert found[name].calls == sum(call.kernel == name for call in calls)
    several = [found[name] for name in {call.kernel for call in calls if call.op == "mla_decode"}]
    assert len(several) > 1 and found["all of mla_decode"].bytes == sum(row.bytes for row in several)
    assert found["all of mla_decode"].milliseconds == pytest.approx(sum(row.milliseconds for row in several))
    reads = manifest.memory["active_bytes_per_token"] + 130 * manifest.memory["cache_bytes_per_token"]
    assert reads <= found["all of the step"].bytes <= 1.2 * reads  # activations, beside weights this small
    (written,) = (found[name] for name in {call.kernel for call in calls if call.op == "latent_write"})
    assert written.bytes < 130 * manifest.memory["cache_bytes_per_token"]
    assert all(0 < row.share < 10 and row.milliseconds > 0 for row in rows)


@pytest.mark.slow
def test_the_command(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models, kernels and resuming."""
    monkeypatch.setattr(cpu, "shapes", lambda _: (SHAPE,))
    monkeypatch.setattr(cpu, "CASES", CASES)
    monkeypatch.setattr(cpu, "PROFILED", CASES[:1])
    out = tmp_path / "out.json"
    options = ["--rounds", "1", "--work", str(folder), "--skip-peers", "--json", str(out)]
    done = CliRunner().invoke(cpu.main, [*options, "--only", "bf16 depth 31", "--only", "tiny bf16 prefill"])
    assert done.exit_code == 0, done.output
    first = json.loads(out.read_text())
    assert [row["case"] for row in first["rows"]] == ["decode, batch 1, depth 31", "prefill of 70"]
    assert {row["label"] for row in first["kernels"]} == {"tiny bf16 kernels, decode, batch 1, depth 31"}
    decode, prefill = first["rows"]
    assert decode["speeds"]["DeepZig"] == pytest.approx(5 / decode["seconds"]["DeepZig"][0])
    assert prefill["speeds"]["DeepZig"] == pytest.approx(70 / prefill["seconds"]["DeepZig"][0])
    assert decode["projected"] < decode["speeds"]["DeepZig"] and prefill["projected"] is None
    done = CliRunner().invoke(cpu.main, [*options, "--resume", "--only", "tiny bf16 decode", "--level", "x86-64-v2"])
    assert done.exit_code == 0, done.output
    second = json.loads(out.read_text())
    assert second["rows"][:2] == first["rows"] and second["kernels"] == first["kernels"]
    assert [row["case"] for row in second["rows"][2:]] == ["decode, batch 3, depth 9"]
    other = second["rows"][2]
    (slower,) = other["seconds"]["DeepZig x86-64-v2"]
    assert other["ratios"] == {"DeepZig x86-64-v2": pytest.approx(slower / other["seconds"]["DeepZig"][0])}
    both = open_artifact(folder / "tiny" / "bf16+x86-64-v2").manifest
    assert {build.name for build in both.builds} == {"native", "x86-64-v2"}
    table = done.stdout
    assert "DeepZig x86-64-v2 x" in table
    assert re.search(r"^ *tiny bf16 prefill of 70 +[\d.]+ +\d+ % ", table, re.MULTILINE) and "tiny: a toy" in table


def test_peers_that_are_not_there_are_told_in_a_line(capfd: pytest.CaptureFixture[str]) -> None:
    found = cpu.available({cpu.LLAMA_CPP: "/no/such/python", cpu.VLLM: None})
    assert found == {}
    assert capfd.readouterr().err.splitlines() == [
        "llama.cpp: /no/such/python: No such file or directory; left out",
        "vLLM: no --vllm-python, left out",
    ]


@pytest.mark.parametrize(
    ("only", "found"),
    [((), True), (("q8 decode",), True), (("bf16",), False), (("bf16", "small depth 4096"), True)],
)
def test_only(only: tuple[str, ...], found: bool) -> None:
    assert cpu.wanted("small q8 decode, batch 1, depth 4096", only) is found
