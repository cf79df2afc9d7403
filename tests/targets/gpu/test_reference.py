"""The reference model on software GPUs: the same answers as on the CPU, token by token."""

from __future__ import annotations

from pathlib import Path

import pytest

from deepzig.compiler.driver import compile_model
from deepzig.compiler.options import Options
from deepzig.models.reference.corpus import heldout
from deepzig.runtime import load

from .compiled import GPUS, compile_for

REFERENCE = Path(__file__).parents[3] / "models" / "reference"


@pytest.mark.slow
@pytest.mark.usefixtures("one_gpu")
@pytest.mark.parametrize("device", GPUS)
def test_held_out_questions_are_answered_as_on_the_cpu(tmp_path: Path, device: str) -> None:
    compile_model(REFERENCE, tmp_path / "cpu", Options(dtype="f32", self_check="none"))
    compile_for(device, REFERENCE, tmp_path / "gpu", dtype="f32")
    questions = heldout(None, 2)
    with load(tmp_path / "cpu") as cpu, load(tmp_path / "gpu") as gpu:
        assert str(gpu.backend.artifact.device) == f"{device}:0"  # type: ignore[attr-defined]
        for question in questions:
            messages = [{"role": "user", "content": question.question}]
            assert gpu.generate(messages, max_tokens=60).token_ids == cpu.generate(messages, max_tokens=60).token_ids
    assert len(questions) > 30
