"""What an export writes, what it refuses, and that it writes all or nothing."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from safetensors.numpy import load_file

from deepzig import __version__
from deepzig.artifacts.onnx_file import file_entry
from deepzig.compiler import cli, export_onnx
from deepzig.compiler.onnx import export as export_file
from deepzig.compiler.onnx.model import exported
from deepzig.compiler.trace import trace
from deepzig.errors import DeepZigError
from deepzig.models.families import parse_config
from deepzig.models.fields import Fields
from deepzig.models.presets import V2_LITE
from deepzig.models.tensors import one_by_one, tensors

from ...models.folders import config, random_weights, safetensors, write
from .sessions import BOUNDS, TOLERANCE, distance, export, reference, runtime


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write(tmp_path_factory.mktemp("files") / "hf", random_weights(config(), 3))
    (folder / "tokenizer.json").write_text('{"a": 1}')
    (folder / "generation_config.json").write_text("{}")
    return folder


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli.command, [str(a) for a in arguments], prog_name="deepzig-compile")


def refused(result: Result, what: str, where: object, hint: str) -> None:
    assert result.exit_code == 2
    assert result.stderr == f"error: {what}\n  at: {where}\n  fix: {hint}\n"


def test_files_and_metadata(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "new" / "tiny.onnx"
    result = run(model, "--onnx", path, "--quant", "q8,experts=q4")
    assert result.exit_code == 0 and result.stdout.startswith(f"wrote {path}: 0.")
    names = ["generation_config.json", "genai_config.json", "tiny.onnx", "tiny.onnx.data", "tiny.onnx.vectors"]
    assert sorted(p.name for p in path.parent.iterdir()) == sorted([*names, "tokenizer.json"])
    assert (path.parent / "tokenizer.json").read_text() == '{"a": 1}'
    props = {p.key: p.value for p in onnx.load(path, load_external_data=False).metadata_props}
    assert props.pop("deepzig.version") == __version__
    stored = {"dtype": "f32", "quant": "q8,experts=q4", "cache": "f32", "cache_width": 26}
    assert json.loads(props.pop("deepzig.config")) == {"name": "hf", **stored, **config().summary()}
    files = {name: vars(file_entry(path.with_name(name))) for name in ("tiny.onnx.data", "tiny.onnx.vectors")}
    assert json.loads(props.pop("deepzig.files")) == files
    assert props == {"deepzig.quant": "q8,experts=q4", "deepzig.vectors": "tiny.onnx.vectors"}
    genai = json.loads((path.parent / "genai_config.json").read_text())["model"]
    assert genai["decoder"]["filename"] == "tiny.onnx" and genai["decoder"]["head_size"] == 26
    assert genai["vocab_size"] == 67 and genai["eos_token_id"] == [1]


def test_json(model: Path, tmp_path: Path) -> None:
    report = json.loads(run(model, "--onnx", tmp_path / "m.onnx", "--json", "--self-check", "none").stdout)
    assert report.keys() == {"onnx", "seconds", "kernels", "weights_bytes"}
    assert not (tmp_path / "m.onnx.vectors").exists()


def test_an_op_that_onnx_does_not_know(tmp_path: Path) -> None:
    source = export(tmp_path, config()).source
    module = trace(config(), "f32", BOUNDS, debug_route=True)
    with pytest.raises(DeepZigError) as caught:
        export_onnx(module, tmp_path / "m.onnx", source)
    what, where, hint = str(caught.value).splitlines()
    assert what == "forced_route can't be exported to ONNX"
    assert where.startswith("  at: deepzig.models.definition:")
    assert hint == "  fix: compile an artifact with -o DIR"


def test_an_unknown_domain(tmp_path: Path) -> None:
    with pytest.raises(DeepZigError) as caught:
        export(tmp_path, config(), domain="other")
    assert str(caught.value) == "no domain is called 'other'\n  at: domain\n  fix: choose from standard, microsoft"


def test_names_are_those_of_the_ir(tmp_path: Path) -> None:
    made = export(tmp_path, config())
    graph = onnx.load(made.path, load_external_data=False).graph
    (ir,) = exported(made.module).graphs
    computed = {name for node in graph.node for name in node.output}
    renamed = {"cache_write", "take_rows"}  # graph outputs, and nothing
    assert {v.name for node in ir.nodes if node.op.name not in renamed for v in node.outputs} <= computed
    assert {v.name for v in ir.globals() if v.kind == "param"} == {t.name for t in graph.initializer if t.external_data}


def test_nodes_tell_where_they_come_from(tmp_path: Path) -> None:
    graph = onnx.load(export(tmp_path, config()).path, load_external_data=False).graph
    (loop,) = (node for node in graph.node if node.op_type == "Loop")
    for node in (loop, *loop.attribute[0].g.node):
        origin = {p.key: p.value for p in node.metadata_props}
        assert origin.pop("deepzig.where").startswith("deepzig.models.definition:")
        assert origin == {"deepzig.op": "moe", "deepzig.layer": "1"}


LATENTS = {"past_key_values": "past", "present": "total"}


def test_signature(tmp_path: Path) -> None:
    graph = onnx.load(export(tmp_path, config()).path, load_external_data=False).graph
    values = [(v.name, v.type.tensor_type.shape.dim) for v in (*graph.input, *graph.output)]
    past, present = ({f"{n}.{i}.latent": ["batch", d, 26] for i in range(2)} for n, d in LATENTS.items())
    assert {name: [d.dim_param or d.dim_value for d in dims] for name, dims in values} == {
        "input_ids": ["batch", "sequence"], "attention_mask": ["batch", "total"], "position_ids": ["batch", "sequence"],
        "logits": ["batch", "sequence", 67], **past, **present,
    }  # fmt: skip


@pytest.mark.parametrize("cache", ["f32", "f16"])
def test_vectors(cache: str, tmp_path: Path) -> None:
    """Two calls, one after the other, that onnxruntime and the evaluator answer alike."""
    path = export(tmp_path, config(), cache=cache).path
    vectors = load_file(f"{path}.vectors")
    graph = onnx.load(path, load_external_data=False).graph
    allowed = TOLERANCE if cache == "f32" else 2e-3
    for name in ("prefill", "decode"):
        inputs = {v.name: vectors.pop(f"{name}/{v.name}") for v in graph.input}
        wanted = {v.name: vectors.pop(f"{name}/{v.name}") for v in graph.output}
        for execute in (runtime(path), reference(path)):
            for got, want in zip(execute(inputs), wanted.values(), strict=True):
                assert got.shape == want.shape and got.dtype == want.dtype
                assert distance(got, want.astype(np.float64)) <= allowed
        if name == "prefill":
            before = {f"past_key_values{k.removeprefix('present')}": v for k, v in wanted.items() if k != "logits"}
        else:
            assert all((inputs[k] == v).all() for k, v in before.items())
    assert not vectors


def test_a_file_in_the_way(model: Path, tmp_path: Path) -> None:
    path, hint = tmp_path / "m.onnx", "choose another folder, or replace what is there with --force"
    assert run(model, "--onnx", path).exit_code == 0
    refused(run(model, "--onnx", path), "the output is there already", path, hint)
    before = path.read_bytes()
    assert run(model, "--onnx", path, "--force", "--dtype", "f16").exit_code == 0
    assert path.read_bytes() != before
    (tmp_path / "tokenizer.json").write_text("{}")
    refused(
        run(model, "--onnx", tmp_path / "n.onnx"), "a file beside the output is another model's",
        tmp_path / "tokenizer.json", hint,
    )  # fmt: skip
    refused(run(model, "--onnx", tmp_path), "the output is a folder", tmp_path, "name a file, such as model.onnx in it")


def test_beside_the_checkpoint(model: Path) -> None:
    """Files that are the same already are no obstacle."""
    assert run(model, "--onnx", model / "model.onnx", "--self-check", "none").exit_code == 0
    assert (model / "model.safetensors").is_file()
    for name in ("model.onnx", "model.onnx.data", "genai_config.json"):
        (model / name).unlink()


@pytest.mark.parametrize("force", [False, True])
def test_a_full_disk_leaves_what_was_there(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, force: bool
) -> None:
    path = tmp_path / "m.onnx"
    if force:
        assert run(model, "--onnx", path).exit_code == 0
    before = {p: p.read_bytes() for p in tmp_path.rglob("*")}

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(export_file, "write_external", full)
    what = "the ONNX model can't be written: No space left on device"
    refused(run(model, "--onnx", path, *["--force"] * force), what, path, "make room and export again")
    assert {p: p.read_bytes() for p in tmp_path.rglob("*")} == before


def test_an_interrupt_leaves_nothing(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(export_file, "write_external", interrupted)
    result = run(model, "--onnx", tmp_path / "m.onnx")
    assert result.exit_code == 130 and "nothing was written" in result.stderr
    assert not list(tmp_path.iterdir())


def test_options_that_do_not_fit(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.onnx"
    for name, more in (("--output", [tmp_path / "out"]), ("--target", ["native"]), ("--debug-route", [])):
        what = f"{name} is for artifacts, not for ONNX models"
        refused(run(model, "--onnx", path, name, *more), what, name, f"leave out {name} or --onnx")
    refused(
        run(model, "--onnx", path, "--cache", "q8"), "an ONNX model can't have a cache of q8",
        "--cache", "choose from f32, f16",
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "onnx", None)
    refused(
        run(model, "--onnx", path), "ONNX models need the package onnx, which is not installed",
        "--onnx", "pip install 'deepzig[onnx]'",
    )  # fmt: skip
    assert not list(tmp_path.iterdir())


def test_bf16_is_warned_of(model: Path, tmp_path: Path) -> None:
    result = run(model, "--onnx", tmp_path / "m.onnx", "--dtype", "bf16")
    assert result.exit_code == 0
    assert "onnxruntime has no bf16 products on the CPU: it keeps these weights as f32 in memory" in result.stderr


@pytest.mark.slow
def test_memory_of_6_gigabytes(tmp_path: Path) -> None:
    """Peak of resident memory, mapped libraries included: under the largest tensor and 2 GiB, in fact 0.4 GB."""
    data = {**V2_LITE, "num_hidden_layers": 6, "vocab_size": 64000, "bos_token_id": 0, "eos_token_id": 1}
    names = list(one_by_one(tensors(parse_config(Fields(data, "test")))))
    header, at = {}, 0
    for name, shape in names:
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    assert at > 6e9
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text(json.dumps(data))
    with (tmp_path / "hf" / "model.safetensors").open("wb") as file:  # which has no blocks on the disk
        file.write(safetensors(header))
        file.truncate(file.tell() + at)
    script = "import sys; from deepzig.compiler.cli import command; command(sys.argv[1:], standalone_mode=False)"
    script += "; print(open('/proc/self/status').read())"
    out = tmp_path / "out" / "model.onnx"
    arguments = [str(tmp_path / "hf"), "--onnx", str(out), "--dtype", "bf16", "--json"]
    command = [sys.executable, "-P", "-c", script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    (peak,) = (int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("VmHWM"))
    written = out.with_name("model.onnx.data").stat().st_size
    out.with_name("model.onnx.data").unlink()
    assert written >= at
    assert peak * 1024 < 2 * 64000 * 2048 + (2 << 30)
