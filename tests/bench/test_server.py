"""The benchmark of the server: its figures add up, on the reference model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import server as bench
from deepzig.compiler.driver import compile_model
from deepzig.compiler.options import Options

REFERENCE = Path(__file__).parents[2] / "models" / "reference"


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("bench")
    compile_model(REFERENCE, folder / "reference", Options(dtype="f32", self_check="none"))
    words = [
        folder / "reference", "--streams", 3, "--rounds", 1, "--clients", 30, "--seconds", 3, "--max-waiting", 8,
        "--threads", 1, "--json", folder / "rows.json",
    ]  # fmt: skip
    done = CliRunner().invoke(bench.main, [str(word) for word in words], catch_exceptions=False)
    assert done.exit_code == 0
    return {row["case"].split(",")[0]: row for row in json.loads((folder / "rows.json").read_text())}


def test_cost(rows: dict[str, dict[str, Any]]) -> None:
    row = rows["cost"]
    assert 0 < row["CPU us a token"] < 100_000 and 0 < row["of all CPU %"] < 100
    assert row["server costs %"] == pytest.approx(100 * (1 - row["server tokens/s"] / row["engine tokens/s"]))


def test_soak(rows: dict[str, dict[str, Any]]) -> None:
    row = rows["soak"]
    assert {name for name in row if name.startswith("status")} == {"status 200", "status 503"}
    assert row["left"] > 0 < row["status 503"] and row["status 200"] > 20
    assert row["without Retry-After"] == row["answers left over"] == row["pages lost"] == row["tasks lost"] == 0
