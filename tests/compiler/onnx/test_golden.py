"""Exported golden models against what transformers once said, and against the interpreter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deepzig.compiler.options import Options

from ...golden.make import FOLDER, GENERATED, MODELS, ROWS, make_checkpoint
from .sessions import TOLERANCE, distance, empty, export, greedy, reference, runtime


@pytest.fixture(scope="module", params=MODELS)
def golden(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp(request.param)
    make_checkpoint(request.param, folder / "hf")
    return export(folder / "hf", folder / "out", Options(dtype="f32")), np.load(FOLDER / f"{request.param}.npz")


def test_onnxruntime(golden: tuple[Path, Any]) -> None:
    model, data = golden
    logits, answer = greedy(runtime(model), data["prompt"].astype(np.int64), empty(model, 1), GENERATED)
    assert distance(logits[list(ROWS)], data["logits"]) <= TOLERANCE
    assert answer == data["generated"].tolist()


def test_reference_evaluator(golden: tuple[Path, Any]) -> None:
    model, data = golden
    logits, answer = greedy(reference(model), data["prompt"].astype(np.int64), empty(model, 1), 5)
    assert distance(logits[list(ROWS)], data["logits"]) <= TOLERANCE
    assert answer == data["generated"].tolist()[:5]
