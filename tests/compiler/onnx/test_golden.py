"""Exported golden models against what transformers once said, and the reference model's answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from deepzig.compiler import export_onnx
from deepzig.compiler.driver import compile_model, read_model
from deepzig.compiler.options import Options
from deepzig.models.reference.corpus import heldout
from deepzig.runtime import load

from ...golden.make import FOLDER, GENERATED, MODELS, ROWS, make_checkpoint
from .sessions import TOLERANCE, Exported, distance, greedy, reference, runtime


def exported(checkpoint: Path, folder: Path) -> Exported:
    source, module = read_model(checkpoint, Options(dtype="f32"))
    export_onnx(module, folder / "model.onnx", source)
    onnx.checker.check_model(str(folder / "model.onnx"), full_check=True)
    return Exported(folder / "model.onnx", source, module)


@pytest.fixture(scope="module", params=MODELS)
def golden(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Exported, Any]:
    folder = tmp_path_factory.mktemp(request.param)
    make_checkpoint(request.param, folder / "hf")
    return exported(folder / "hf", folder), np.load(FOLDER / f"{request.param}.npz")


def test_onnxruntime(golden: tuple[Exported, Any]) -> None:
    model, data = golden
    logits, answer = greedy(runtime(model.path), data["prompt"].astype(np.int64), model.empty(1), GENERATED)
    assert distance(logits[list(ROWS)], data["logits"]) <= TOLERANCE
    assert answer == data["generated"].tolist()


def test_reference_evaluator(golden: tuple[Exported, Any]) -> None:
    model, data = golden
    logits, answer = greedy(reference(model.path), data["prompt"].astype(np.int64), model.empty(1), 33)
    assert distance(logits[list(ROWS)], data["logits"]) <= TOLERANCE
    assert answer == data["generated"].tolist()[:33]


@pytest.mark.slow
def test_the_reference_model_answers_alike(tmp_path: Path) -> None:
    model = exported(Path("reference"), tmp_path)
    run = runtime(model.path)
    compile_model(Path("reference"), tmp_path / "artifact", Options(dtype="f32"))
    with load(tmp_path / "artifact") as artifact:
        for question in heldout(None, 2):
            prompt = artifact.tokenizer.encode_chat([{"role": "user", "content": question.question}])
            want = artifact.generate(prompt, max_tokens=60).token_ids
            assert greedy(run, np.array(prompt, np.int64), model.empty(1), len(want))[1] == list(want)
