"""`deepzig bench` on a real artifact: what it prints, writes and refuses. Figures are never compared with figures."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from deepzig.artifacts.reader import open_artifact
from deepzig.runtime import first_token, machine
from deepzig.runtime.bench import cli as bench
from deepzig.runtime.child import Usage

SMALL = ("--batch", "1,3", "--depth", "0,40", "--prompt", "70", "--tokens", "3", "--rounds", "2", "--threads", "2")
CASES = ["prefill 70", *(f"decode batch {b} depth {d}" for d in (0, 40) for b in (1, 3))]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without processes of their own, and with a short stream."""
    monkeypatch.setattr(machine, "gemm_flops", lambda threads: 1e9 * threads)
    monkeypatch.setattr(bench, "measure", lambda command: Usage(1.5, 1.25, 3_000_000, 2_000_000))
    monkeypatch.setattr(machine, "STREAM_BYTES", 1 << 20)


def test_everything(cli: Any, artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes and all; the profile's kernels are those of the manifest, and the picture is one."""
    monkeypatch.setattr(machine, "STREAM_BYTES", 1 << 20)
    out, picture = tmp_path / "made" / "profile", tmp_path / "also" / "speeds.png"
    code, told, errors = cli("bench", artifact, *SMALL, "--json", "--profile", out, "--plot", picture)
    assert (code, errors) == (0, "")
    found = json.loads(told)
    assert found["complete"] and found["rounds"] == 2 and found["threads"] == 2 and found["skipped"] == []
    assert [(d["batch"], d["depth"], len(d["seconds"])) for d in found["decode"]] == [
        (1, 0, 2), (3, 0, 2), (1, 40, 2), (3, 40, 2)
    ]  # fmt: skip
    assert [(p["prompt"], len(p["seconds"])) for p in found["prefill"]] == [(70, 2)]
    for speed in (*found["prefill"], *found["decode"]):
        tokens = speed.get("prompt") or 3 * speed["batch"]
        assert speed["tokens_per_second"] == pytest.approx(tokens / (sum(speed["seconds"]) / 2), rel=1e-9)
    assert min(found["machine"][k] for k in ("bandwidth_bytes_per_second", "gemm_flops_per_second", "cores")) > 0
    assert found["first_token_seconds"] > 0 and found["peak_bytes"] > found["peak_private_bytes"] > 0

    calls = open_artifact(artifact).build.calls
    events = [e for e in json.loads((out / "trace.json").read_text())["traceEvents"] if e["ph"] == "X"]
    assert [e["name"] for e in events if e["cat"] == "case"] == CASES
    # a chunk of 64 tokens, then 6 rows in the form of a decode; then 3 steps of each of four decodes
    entries = ["prefill", "decode", *(4 * 3 * ["decode", "sample"])]
    assert [e["name"] for e in events if e["cat"] == "entry"] == entries
    kernels = [e["args"]["kernel"] for e in events if e["cat"] == "kernel"]
    assert kernels == [call.kernel for entry in entries for call in calls[entry]]
    assert [part["case"] for part in found["profile"]] == CASES
    text = (out / "kernels.txt").read_text()
    assert all(f"{case}, " in text for case in CASES) and "dense: 0" in text and "mla_decode" in text
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 5000


def test_text(cli: Any, artifact: Path, quick: None) -> None:
    words = ("--batch", "1,7", "--depth", "0,2000", "--prompt", "5,9", "--tokens", "2", "--rounds", "1")
    code, told, errors = cli("bench", artifact, *words, DEEPZIG_THREADS="2")
    assert (code, errors) == (0, "")
    lines = told.splitlines()
    assert lines[0].startswith(f"{artifact}: build ") and lines[0].endswith("; medians of 1 round")
    assert [line.split()[:2] for line in lines[3:5]] == [["prefill", "5"], ["prefill", "9"]]
    assert lines[5].split()[:3] == ["decode", "1", "0"] and len(lines) == 16
    assert lines[7:10] == [
        "first token from process start       1.25 s", "peak memory of that process             3 MB",
        "of it private, not mapped files         2 MB",
    ]  # fmt: skip
    assert lines[11] == "f32 product by this machine             2 GFLOP/s"
    assert lines[13:] == [
        "skipped decode batch 7 depth 0: the artifact takes at most 6 sequences",
        *(f"skipped decode batch {b} depth 2000: 2002 tokens are more than the context of 1024" for b in (1, 7)),
    ]


def test_an_interrupt_prints_what_was_measured(
    cli: Any, artifact: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: int) -> float:
        raise KeyboardInterrupt

    monkeypatch.setattr(machine, "gemm_flops", interrupt)
    code, told, _ = cli("bench", artifact, *SMALL, "--json")
    found = json.loads(told)
    assert code == 130 and not found["complete"] and found["first_token_seconds"] is None
    assert [len(d["seconds"]) for d in (*found["prefill"], *found["decode"])] == [1] * 5
    assert found["machine"]["gemm_flops_per_second"] is None
    code, told, _ = cli("bench", artifact, *SMALL)
    assert code == 130 and "interrupted: not every case has as many rounds" in told


def test_an_interrupt_before_anything_was_measured(
    cli: Any, artifact: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> float:
        raise KeyboardInterrupt

    monkeypatch.setattr(bench.Runner, "run", interrupt)
    assert cli("bench", artifact, *SMALL, "--json")[:2] == (130, "")


@pytest.mark.slow
def test_ctrl_c(artifact: Path) -> None:
    """In a process of its own, once the first case was measured."""
    words = [Path(sys.executable).parent / "deepzig", "bench", artifact, *SMALL, "--rounds", "1000"]
    with subprocess.Popen(
        [str(word) for word in words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "DEEPZIG_LOG": "debug"},
    ) as process:  # fmt: skip
        assert process.stdout is not None and process.stderr is not None
        while ", prefill 70: " not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        try:
            told, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130 and "Traceback" not in errors
    assert "interrupted: not every case" in told and "prefill 70" in told


def test_a_process_that_fails(cli: Any, artifact: Path, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(command: list[str]) -> Usage:
        raise subprocess.CalledProcessError(1, command, stderr=b"Traceback\nMemoryError: too large\n")

    monkeypatch.setattr(bench, "measure", fail)
    assert cli("bench", artifact, *SMALL) == (
        2, "",
        "error: a process of the benchmark failed: MemoryError: too large\n"
        f"  at: {artifact}\n  fix: run it again with less in memory\n",
    )  # fmt: skip


def test_no_matplotlib(cli: Any, artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told before anything is measured."""
    from deepzig.runtime.bench import plot

    monkeypatch.setattr(plot, "find_spec", lambda name: None if name == "matplotlib" else find_spec(name))
    assert cli("bench", artifact, "--plot", "x.png") == (
        2, "", "error: matplotlib is not installed\n  at: --plot\n  fix: pip install 'deepzig[plot]'\n"
    )  # fmt: skip


@pytest.mark.parametrize("option", ["--plot", "--profile"])
def test_a_place_that_can_not_be_written(option: str, cli: Any, artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    place = tmp_path / "file" / "x" / ("p.png" if option == "--plot" else "")
    assert cli("bench", artifact, option, place) == (
        2, "",
        f"error: the folder can't be made: Not a directory\n  at: {tmp_path / 'file' / 'x'}\n"
        f"  fix: choose another place with {option}\n",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("option", "value", "least"),
    [("--batch", "0,1", 1), ("--depth", "a", 0), ("--prompt", "", 1), ("--depth", "-1", 0)],
)
def test_lists_of_numbers(option: str, value: str, least: int, cli: Any, artifact: Path) -> None:
    code, out, errors = cli("bench", artifact, option, value)
    assert (code, out) == (2, "")
    assert f"{value!r} is no list of whole numbers from {least}, such as 1,4" in errors


def test_no_artifact(cli: Any, tmp_path: Path) -> None:
    want = f"error: there is no artifact\n  at: {tmp_path}\n  fix: make one with deepzig-compile\n"
    assert cli("bench", tmp_path) == (2, "", want)


def test_the_first_token_is_told_from_anywhere(artifact: Path, tmp_path: Path) -> None:
    """A relative path, and from a folder whose files have names of modules."""
    command = first_token.command(Path(os.path.relpath(artifact)), 2, "cpu")
    (tmp_path / "deepzig").mkdir()
    done = subprocess.run(command, capture_output=True, text=True, cwd=os.sep)
    assert (done.returncode, done.stdout) == (0, "."), done.stderr
    assert command[0] == sys.executable
