"""An artifact against onnxruntime: ratios of turns, and the command from end to end on a toy."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_export
import pytest
import tvm  # noqa: F401 - its runtime library, before an artifact brings a copy that other tests could not live with
from click.testing import CliRunner
from contest import Samples
from protocol import Case

from deepzig.models.presets import PRESETS

CASES = Case(batch=1, depth=5, steps=3), Case(batch=2, depth=0, steps=3), Case(prompt=300)


def test_a_ratio_is_the_median_over_turns() -> None:
    case = Case(batch=2, depth=5, steps=10)
    samples = Samples({("a", case): [1.0, 2.0, 4.0], ("b", case): [2.0, 8.0, 12.0]})
    row = onnx_export.compare("f32", case, samples, "a", "b")
    assert (row.name, row.speeds, row.ratio) == ("f32 decode, batch 2, depth 5", (10.0, 2.5), 3.0)


@pytest.mark.slow
def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config: dict[str, Any] = {**PRESETS["tiny"], "num_hidden_layers": 2}
    monkeypatch.setattr(onnx_export, "SHAPE", replace(onnx_export.SHAPE, config=config))
    monkeypatch.setattr(onnx_export, "GROWTH", tuple(replace(shape, config=config) for shape in onnx_export.GROWTH))
    monkeypatch.setattr(onnx_export, "CASES", CASES)
    monkeypatch.setattr(onnx_export, "DECODES", CASES[:1])
    out = tmp_path / "rows.json"
    words = ["--rounds", "1", "--threads", "1", "--work", str(tmp_path), "--json", str(out)]
    done = CliRunner().invoke(onnx_export.main, words, catch_exceptions=False)
    rows = json.loads(out.read_text())["rows"]
    peers = [(form, domain) for form, domains in onnx_export.DOMAINS.items() for domain in domains]
    assert len(rows) == len(peers) * len(CASES) + 1
    assert all(min(row["speeds"]) > 0 and row["ratio"] > 0 for row in rows)
    assert done.exit_code == 0 and done.output.count("onnxruntime (") == len(peers) * len(CASES)
