"""Exports that are damaged, not whole or not ours are refused, each with its reason."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from deepzig.artifacts.onnx_file import open_onnx
from deepzig.artifacts.parts import is_onnx, open_parts
from deepzig.errors import DeepZigError

from ..runtime.onnx_models import LAYERS, POSITIONS, VOCAB, WIDTH, write

COPY = "copy the model again, with all files beside it, or export it again"
AGAIN = "export the model again"
MAKE = "make one with deepzig-compile --onnx"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def path(whole: Path, tmp_path: Path) -> Path:
    for file in whole.parent.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path / whole.name


def refusal(path: Path, full: bool = False) -> tuple[str, str, str]:
    with pytest.raises(DeepZigError) as error:
        open_onnx(path, full)
    return error.value.what, error.value.where, error.value.hint


def test_a_whole_one(path: Path) -> None:
    file = open_onnx(path, full=True)
    assert (file.version, file.quant, file.microsoft) == ("9.9", None, False)
    assert file.vectors == path.with_name("model.onnx.vectors")
    assert file.model["vocab_size"] == VOCAB and file.model["max_position_embeddings"] == POSITIONS
    assert [(c.name, c.dtype, c.shape) for c in file.caches] == [
        (f"past_key_values.{i}.latent", "f32", ("batch", "past", WIDTH)) for i in range(LAYERS)
    ]
    assert file.files.keys() == {"model.onnx.data", "model.onnx.vectors"}


def test_what_an_onnx_model_is_called(tmp_path: Path) -> None:
    (tmp_path / "folder.onnx").mkdir()
    names = ("model.onnx", "missing.onnx", "model.deepzig", "folder.onnx")
    assert [is_onnx(tmp_path / name) for name in names] == [True, True, False, False]


def test_what_takes_artifacts_takes_none(path: Path) -> None:
    with pytest.raises(DeepZigError) as error:
        open_parts(path)
    hint = "use it with deepzig run, chat or verify"
    assert (error.value.what, error.value.where, error.value.hint) == ("an ONNX model is no artifact", str(path), hint)


def test_no_file(tmp_path: Path) -> None:
    assert refusal(tmp_path / "x.onnx") == ("there is no such file", str(tmp_path / "x.onnx"), MAKE)


def test_no_model(path: Path) -> None:
    content = path.read_bytes()
    for broken in (b"nonsense", content[: len(content) // 2]):
        path.write_bytes(broken)
        assert refusal(path) == ("the file is no ONNX model, or is cut off", str(path), AGAIN)


def test_data_that_is_missing_cut_off_or_of_another_model(path: Path, tmp_path: Path) -> None:
    data = path.with_name("model.onnx.data")
    content = data.read_bytes()
    data.write_bytes(content[:-9])
    what = f"the file has {len(content) - 9} bytes, not {len(content)}"
    assert refusal(path) == (what, str(data), COPY)
    data.write_bytes(write(tmp_path / "other", seed=1).with_name("model.onnx.data").read_bytes())
    open_onnx(path)  # sizes are looked at when a model is loaded, hashes when it is verified
    what = "the file was changed: its SHA-256 differs from the model's"
    assert refusal(path, full=True) == (what, str(data), COPY)
    data.unlink()
    assert refusal(path) == ("a file of the model is missing", str(data), COPY)


@pytest.mark.parametrize(
    ("key", "text", "what"),
    [
        ("version", None, "the model was not exported by DeepZig"),
        ("config", None, "the metadata's deepzig.config is missing"),
        ("config", "{", "the metadata's deepzig.config is not JSON"),
        ("config", "[]", "the metadata's deepzig.config is not an object"),
        ("config", '{"vocab_size": "x"}', "the metadata's deepzig.config vocab_size is not a whole number from 1"),
        ("files", "{}", "the metadata's deepzig.files does not list 'model.onnx.data'"),
        ("files", '{"../x": {}}', "the metadata's deepzig.files has '../x', which is no plain name"),
        ("files", '{"x": {"size": 1, "sha256": "0"}}', "the metadata's deepzig.files x has no SHA-256"),
        ("vectors", "others", "the metadata's deepzig.files does not list 'others'"),
    ],
)
def test_metadata(key: str, text: str | None, what: str, tmp_path: Path) -> None:
    path = write(tmp_path, **{key: text})
    assert refusal(path) == (what, str(path), MAKE if key == "version" else AGAIN)


def test_another_number_of_layers(tmp_path: Path) -> None:
    config = {"vocab_size": 5, "num_hidden_layers": 3, "max_position_embeddings": 5, "eos_token_ids": []}
    path = write(tmp_path, config=json.dumps(config))
    what = "the graph's inputs and outputs are not those of a model of 3 layers"
    assert refusal(path) == (what, str(path), AGAIN)


def test_without_the_extra(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert refusal(path) == ("onnx is not installed", str(path), "pip install 'deepzig[onnx]'")
