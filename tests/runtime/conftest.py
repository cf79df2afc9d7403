"""One real artifact for all tests that need one."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deepzig.cli import main
from deepzig.compiler.driver import compile_model
from deepzig.compiler.options import Options
from deepzig.compiler.trace import Bounds
from deepzig.models import random_checkpoint
from deepzig.models.presets import PRESETS
from deepzig.runtime import Model, load

CONFIG = {
    **PRESETS["tiny"], "vocab_size": 611, "hidden_size": 72, "intermediate_size": 100, "moe_intermediate_size": 40,
    "num_hidden_layers": 2, "num_attention_heads": 3, "num_key_value_heads": 3,
    "q_lora_rank": 40, "kv_lora_rank": 24, "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8, "v_head_dim": 20, "max_position_embeddings": 1024,
}  # fmt: skip
BOUNDS = Bounds(chunk=64, decode_rows=8, rows=96, batch=6, page_size=16)


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runtime")
    random_checkpoint.write(folder / "checkpoint", CONFIG)
    compile_model(folder / "checkpoint", folder / "artifact", Options(bounds=BOUNDS, embeddings=True))
    return folder / "artifact"


@pytest.fixture(scope="module")
def model(artifact: Path) -> Iterator[Model]:
    with load(artifact, threads=2, cache_tokens=1500) as loaded:
        yield loaded


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run the command line in this process: (words, standard input) -> (exit code, output, errors)."""

    def run(*words: object, stdin: str = "", **env: str) -> tuple[int, str, str]:
        import io

        for name in [n for n in os.environ if n.startswith("DEEPZIG_")]:
            monkeypatch.delenv(name)
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        code = 0
        try:
            main([str(word) for word in words])
        except SystemExit as stop:
            code = int(stop.code or 0)
        told = capsys.readouterr()
        return code, told.out, told.err

    return run
