"""A compile that is killed, interrupted or without room leaves what was there before, whole, or nothing."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deepzig.artifacts.reader import open_artifact
from deepzig.errors import DeepZigError
from deepzig.models import random_checkpoint
from deepzig.models.presets import PRESETS

PROGRAM = "import sys; from deepzig.compiler.cli import main; sys.argv[0] = 'deepzig-compile'; main()"
START = 1.0
"""Seconds after which a process has certainly begun; before, Python itself is interrupted."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("interrupted") / "checkpoint"
    random_checkpoint.write(folder, {**PRESETS["tiny"], "num_hidden_layers": 2})
    return folder


@pytest.fixture(scope="module")
def whole(checkpoint: Path) -> float:
    """Seconds of a compile."""
    return seconds_of_a_compile(checkpoint, checkpoint.parent / "whole")


def started(checkpoint: Path, out: Path, limit: Callable[[], None] | None = None) -> subprocess.Popen[str]:
    command = [sys.executable, "-P", "-c", PROGRAM, str(checkpoint), "-o", str(out), "--force"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=limit)


def seconds_of_a_compile(checkpoint: Path, out: Path) -> float:
    begin = time.monotonic()
    with started(checkpoint, out) as process:
        _, err = process.communicate()
    assert process.returncode == 0, err
    return time.monotonic() - begin


def whole_or_nothing(out: Path, before: dict[Path, bytes]) -> None:
    """The old artifact, or a new one; without an old one, nothing or a new one."""
    if not before and not out.exists():
        return
    open_artifact(out, full=True)
    assert set(p.name for p in out.iterdir()) >= {"manifest.json", "code", "lib"} and not (out / ".lock").exists()


def content(out: Path) -> dict[Path, bytes]:
    return {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}


MOMENTS = [(kind, times) for kind in (signal.SIGKILL, signal.SIGINT, signal.SIGTERM) for times in (1, 8)]


@pytest.mark.parametrize(
    ("kind", "times"),
    [pytest.param(*m, marks=[pytest.mark.slow] * (m != MOMENTS[0]), id=f"{m[0].name}-{m[1]}") for m in MOMENTS],
)
def test_at_a_random_moment(
    kind: signal.Signals, times: int, checkpoint: Path, whole: float, tmp_path: Path
) -> None:  # fmt: skip
    """Nothing but hidden leftovers of a killed process, which the next compile removes."""
    out, rng = tmp_path / "out", random.Random(int(kind) * 100 + times)
    for turn in range(times):
        before = content(out)
        with started(checkpoint, out) as process:
            time.sleep(rng.uniform(START, max(whole, START + 0.5)))
            process.send_signal(kind)
            _, err = process.communicate()
        if kind != signal.SIGKILL and process.returncode != -kind:  # so it ends before it has begun
            assert process.returncode in (0, 130) and "Traceback" not in err, err
            assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
        whole_or_nothing(out, before)
        if turn % 2:
            seconds_of_a_compile(checkpoint, out)
            assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]
            open_artifact(out, full=True)


@pytest.mark.parametrize(
    ("limit", "old"),
    [
        (20_000, False),
        (2_000_000, False),
        pytest.param(300_000, True, marks=pytest.mark.slow),
        pytest.param(2_000_000, True, marks=pytest.mark.slow),
    ],
)
def test_files_may_not_grow(limit: int, old: bool, checkpoint: Path, tmp_path: Path) -> None:
    """RLIMIT_FSIZE: three lines, and nothing is left of the new one."""
    out = tmp_path / "out"
    if old:
        seconds_of_a_compile(checkpoint, out)
    before = content(out)

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    with started(checkpoint, out, limited) as process:
        _, err = process.communicate()
    assert process.returncode == 2 and err.startswith("error: ") and err.count("\n") == 3, err
    assert content(out) == before and os.listdir(tmp_path) == (["out"] if old else [])


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)]
    if os.getuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small disk can't be mounted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk(small_disk: Path, checkpoint: Path) -> None:
    with started(checkpoint, small_disk / "out") as process:
        _, err = process.communicate()
    assert process.returncode == 2
    assert err == (
        "error: the artifact can't be written: No space left on device\n"
        f"  at: {small_disk / 'out'}\n  fix: make room and compile again\n"
    )
    assert not list(small_disk.iterdir())


def test_the_checkpoint_is_never_the_output(checkpoint: Path) -> None:
    before = content(checkpoint)
    for out in (checkpoint, checkpoint / "model.safetensors"):
        with started(checkpoint, out) as process:
            _, err = process.communicate()
        assert process.returncode == 2 and err.count("\n") == 3, err
    assert content(checkpoint) == before
    with pytest.raises(DeepZigError):
        open_artifact(checkpoint)
