"""Whole models on levels that round rows to bf16, which other tests leave out (tests/conftest.py)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from deepzig.artifacts.cpu_features import MASK, detect
from deepzig.artifacts.machines import BF16_ROWS, MACHINES
from deepzig.compiler.driver import compile_model
from deepzig.compiler.options import Options
from deepzig.models import random_checkpoint
from deepzig.runtime import Model, load

from . import test_artifact as on_any_level
from .conftest import BOUNDS, CONFIG

LEVELS = [name for name, kind in MACHINES.items() if kind.features & BF16_ROWS]
PLAIN = "x86-64-v3"
ALL_CHOSEN = {**CONFIG, "num_experts_per_tok": CONFIG["n_routed_experts"], "n_group": 1, "topk_group": 1}
"""Without a choice of experts, which a rounded score may turn."""
TOLERANCE = {None: 1.5e-2, "q4": 3e-2, "fp8": 1.5e-2}
"""Of logits, norm-relative, by `--quant`: rows, scores and latents are rounded to 8 bits of mantissa, in two layers."""


CASES = [
    pytest.param((level, quant), id=f"{level}-{quant}", marks=[pytest.mark.slow] if quant else [])
    for level in LEVELS
    for quant in TOLERANCE
]


@pytest.fixture(scope="module", params=CASES)
def compiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str | None]:
    """An artifact for a level and for a plain one, the level and the quantisation."""
    level, quant = request.param
    if not MACHINES[level].features <= detect():
        pytest.skip(f"this machine is no {level}")
    folder = tmp_path_factory.mktemp("levels")
    random_checkpoint.write(folder / "checkpoint", ALL_CHOSEN)
    options = Options(bounds=BOUNDS, dtype="bf16", quant=quant, target=f"{level}+{PLAIN}")
    with pytest.MonkeyPatch.context() as patched:
        patched.delenv(MASK, raising=False)
        compile_model(folder / "checkpoint", folder / "artifact", options)
    return folder / "artifact", level, quant


def loaded(artifact: Path, level: str, monkeypatch: pytest.MonkeyPatch) -> Model:
    """The model as the level's code computes it."""
    monkeypatch.setenv(MASK, ",".join(MACHINES[level].features))
    return load(artifact, threads=2, cache_tokens=1500)


@pytest.fixture
def model(compiled: tuple[Path, str, str | None], monkeypatch: pytest.MonkeyPatch) -> Iterator[Model]:
    with loaded(*compiled[:2], monkeypatch) as found:
        yield found


def test_logits(compiled: tuple[Path, str, str | None], model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a prompt, by both entry points: near those of multiply-adds in f32, but others."""
    artifact, _, quant = compiled
    rng = np.random.default_rng(4)
    with loaded(artifact, PLAIN, monkeypatch) as plain:
        for length in (7, 150):
            ids = rng.integers(2, CONFIG["vocab_size"], length).tolist()
            got, want = model.logits(ids), plain.logits(ids)
            distance = np.linalg.norm(got - want) / np.linalg.norm(want)
            assert 1e-5 < distance <= TOLERANCE[quant]


@pytest.mark.parametrize("entry", ["prefill", "decode"])
def test_company_and_pages_do_not_matter(model: Model, entry: str) -> None:
    on_any_level.test_company_and_pages_do_not_matter(model, entry)


def test_threads_and_processes_do_not_matter(
    compiled: tuple[Path, str, str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact, level, _ = compiled
    monkeypatch.setenv(MASK, ",".join(MACHINES[level].features))
    on_any_level.test_threads_and_processes_do_not_matter(artifact)
