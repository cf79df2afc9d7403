"""What a program took."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from deepzig.runtime.child import measure

PRIVATE = 40 << 20
PROGRAM = f"""
import sys, time
held = bytearray(b"x") * {PRIVATE}
sys.stdout.write("ab"); sys.stdout.flush()
time.sleep(0.1)
"""


def test_time_and_memory() -> None:
    usage = measure([sys.executable, "-c", PROGRAM])
    assert usage.first_output_seconds is not None and 0 < usage.first_output_seconds <= usage.seconds - 0.1
    assert usage.peak_bytes is not None and usage.peak_private_bytes is not None
    assert PRIVATE < usage.peak_private_bytes <= usage.peak_bytes < 4 * PRIVATE


def test_no_output() -> None:
    assert measure([sys.executable, "-c", ""]).first_output_seconds is None


def test_much_output_does_not_block() -> None:
    assert measure([sys.executable, "-c", "print('x' * 1000000)"]).first_output_seconds is not None


def test_a_program_that_fails() -> None:
    with pytest.raises(subprocess.CalledProcessError) as error:
        measure([sys.executable, "-c", "import sys; sys.exit('why')"])
    assert error.value.returncode == 1 and error.value.stderr == b"why\n"


def test_it_runs_away_from_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit(3)")
    monkeypatch.chdir(tmp_path)
    measure([sys.executable, "-c", "import json"])
