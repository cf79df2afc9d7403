"""The whole way, checkpoint to text, against what transformers once said (make.py); needs no PyTorch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from deepzig.compiler.driver import compile_model
from deepzig.compiler.options import Options
from deepzig.compiler.trace import Bounds
from deepzig.runtime import load

from .make import FOLDER, GENERATED, MODELS, ROWS, make_checkpoint

TOLERANCE = 2e-5
"""f32, norm-relative."""


@pytest.mark.parametrize("name", MODELS)
def test_golden(name: str, tmp_path: Path) -> None:
    golden = np.load(FOLDER / f"{name}.npz")
    make_checkpoint(name, tmp_path / "hf")
    bounds = Bounds(chunk=64, decode_rows=8, rows=64, batch=4, page_size=16)
    compile_model(tmp_path / "hf", tmp_path / "out", Options(dtype="f32", bounds=bounds))
    with load(tmp_path / "out") as model:
        prompt = golden["prompt"].tolist()
        got, want = model.logits(prompt)[list(ROWS)], golden["logits"]
        assert np.linalg.norm(got - want) <= TOLERANCE * np.linalg.norm(want)
        answer = model.generate(prompt, max_tokens=GENERATED, ignore_eos=True)
        assert answer.token_ids == tuple(golden["generated"].tolist())


def test_golden_files_are_small() -> None:
    assert sum(path.stat().st_size for path in FOLDER.glob("*.npz")) < 50_000
