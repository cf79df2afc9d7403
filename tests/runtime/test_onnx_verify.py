"""`deepzig verify model.onnx`: what it prints, and that it names the first output that diverges."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from .onnx_models import LAYERS, annotate, entry, write

HINT = "onnxruntime computes something else on this machine; try another version of it, and report it"


@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_a_right_one(dtype: str, cli: Any, tmp_path: Path) -> None:
    path = write(tmp_path, dtype)
    code, out, errors = cli("verify", path, "--threads", 1)
    allowed = {"f32": "2e-05", "f16": "1e-03"}[dtype]
    line = (
        f"ok: all files, {LAYERS} layers, {2 * (LAYERS + 1)} outputs of decode, prefill; the worst is "
        rf"\d\.\de[-+]\d\d off \(\S+\), allowed is {allowed}\n"
    )
    assert (code, errors) == (0, "") and re.fullmatch(line, out)


def test_json(cli: Any, tmp_path: Path) -> None:
    path = write(tmp_path)
    code, out, _ = cli("verify", path, "--json")
    report = json.loads(out)
    assert code == 0 and report["ok"] and report["model"] == str(path) and report["wrong"] == []
    assert report["worst"].keys() == {"call", "output", "distance", "allowed"}


def spoil(path: Path, name: str, change: Any) -> None:
    """Change a weight, and hashes with it."""
    proto = onnx.load_model(path)
    metadata = {p.key: p.value for p in proto.metadata_props}
    (tensor,) = [t for t in proto.graph.initializer if t.name == name]
    tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)), name))
    path.with_name("model.onnx.data").unlink()
    onnx.save_model(proto, path, save_as_external_data=True, location="model.onnx.data")
    files = {name: entry(path.with_name(name)) for name in json.loads(metadata["deepzig.files"])}
    annotate(path, metadata | {"deepzig.files": json.dumps(files)})


def test_the_first_output_that_diverges(cli: Any, tmp_path: Path) -> None:
    path = write(tmp_path)
    spoil(path, "tokens.1", lambda weight: weight * np.float32(1.001))
    code, out, errors = cli("verify", path)
    words = (
        r"error: present\.1\.latent differs by \d\.\de-04 in decode, allowed is 2e-05; 3 more outputs differ\n"
        rf"  at: {path}\n  fix: {HINT}\n"
    )
    assert (code, out) == (2, "") and re.fullmatch(words, errors)
    code, out, errors = cli("verify", path, "--json")
    report = json.loads(out)
    assert code == 2 and not report["ok"]
    assert [(w["call"], w["output"]) for w in report["wrong"]] == [
        (call, output) for call in ("decode", "prefill") for output in ("present.1.latent", "logits")
    ]


def test_rows_that_are_rounded(cli: Any, tmp_path: Path) -> None:
    """Of ops of onnxruntime's own, which round them, more is allowed."""
    path = write(tmp_path)
    spoil(path, "tokens.1", lambda weight: weight * np.float32(1.01))
    assert cli("verify", path)[0] == 2
    proto = onnx.load_model(path, load_external_data=False)
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    path.write_bytes(proto.SerializeToString())
    code, out, _ = cli("verify", path)
    assert code == 0 and out.endswith("allowed is 5e-01\n")


def test_numbers_that_are_none(cli: Any, tmp_path: Path) -> None:
    path = write(tmp_path)
    spoil(path, "head", lambda weight: weight * np.float32(np.nan))
    code, _, errors = cli("verify", path)
    assert code == 2 and errors.startswith("error: logits differs by inf in decode, allowed is 2e-05; 1 more outputs")


def test_vectors_of_another_model_and_none(cli: Any, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    path = write(tmp_path)
    vectors = path.with_name("model.onnx.vectors")
    save_file({"decode/input_ids": np.array([[3]])}, vectors)
    proto = onnx.load_model(path, load_external_data=False)
    metadata = {p.key: p.value for p in proto.metadata_props}
    files = {name: entry(path.with_name(name)) for name in json.loads(metadata["deepzig.files"])}
    annotate(path, metadata | {"deepzig.files": json.dumps(files)})
    assert cli("verify", path)[2] == (
        f"error: the self-check vectors are of another model\n  at: {vectors}, decode\n"
        "  fix: copy the model again, with all files beside it, or export it again\n"
    )
    annotate(path, {key: text for key, text in metadata.items() if key != "deepzig.vectors"} | {
        "deepzig.files": json.dumps(files)
    })  # fmt: skip
    assert cli("verify", path)[2] == (
        f"error: the model has no self-check vectors\n  at: {path}\n  fix: export it again with a self-check\n"
    )


@pytest.mark.parametrize("words", [("--against", "x"), ("--all-builds",), ("--device", "cpu")])
def test_options_of_artifacts(words: tuple[str, ...], cli: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    want = f"error: {words[0]} is for artifacts\n  at: {path}\n  fix: leave the option out\n"
    assert cli("verify", path, *words) == (2, "", want)


def test_without_onnxruntime(cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    want = f"error: onnxruntime is not installed\n  at: {path}\n  fix: pip install 'deepzig[onnx]'\n"
    assert cli("verify", path) == cli("run", path, "x") == (2, "", want)


def test_a_graph_that_onnxruntime_refuses(cli: Any, tmp_path: Path) -> None:
    path = write(tmp_path)
    proto = onnx.load_model(path, load_external_data=False)
    proto.graph.node[-1].op_type = "NoSuchOp"
    path.write_bytes(proto.SerializeToString())
    code, out, errors = cli("verify", path)
    first, *rest = errors.splitlines()
    assert (code, out) == (2, "") and first.startswith("error: onnxruntime does not load the model: ")
    assert "NoSuchOp" in first
    assert rest == [f"  at: {path}", "  fix: install the newest onnxruntime, or export the model again"]
