"""Compilations that are killed, interrupted or run out of disk: the old artifact whole or nothing, and no trap."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tvm_ffi

import deepzig.compiler.build  # noqa: F401, tells TVM of interrupts
from deepzig.artifacts.reader import open_artifact
from deepzig.artifacts.workplace import clear_leftovers
from deepzig.compiler.driver import compile_model
from deepzig.compiler.options import Options
from deepzig.errors import DeepZigError

from ..models.folders import config, random_weights, write

COMMAND = Path(sys.executable).parent / "deepzig-compile"
KILLS = [*range(2), *(pytest.param(i, marks=pytest.mark.slow) for i in range(2, 12))]
"""Seeds of random moments; most are for the slow part."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("interrupted") / "model", random_weights(config(), 57))


def arguments(model: Path, out: Path, *more: object) -> list[str]:
    return [str(COMMAND), str(model), "-o", str(out), "--self-check", "none", *map(str, more)]


@pytest.fixture(scope="module")
def old(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """An artifact in f32, and the seconds from the compiler's being loaded to the end."""
    out = tmp_path_factory.mktemp("old") / "artifact"
    with started(arguments(model, out, "--dtype", "f32")) as process:
        start = time.perf_counter()
        process.communicate()
    assert process.returncode == 0
    return out, time.perf_counter() - start


def started(command: list[str]) -> subprocess.Popen[str]:
    """A process whose `main` has begun: it is loading TVM."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    maps = Path(f"/proc/{process.pid}/maps")
    while "libtvm" not in maps.read_text():
        assert process.poll() is None
        time.sleep(0.01)
    return process


def stopped(command: list[str], number: signal.Signals, delay: float) -> tuple[int, str]:
    """Send a signal after a delay: exit status, and what was told."""
    with started(command) as process:
        time.sleep(delay)
        process.send_signal(number)
        _, told = process.communicate(timeout=120)
    return process.returncode, told


def dtype(artifact: Path) -> str:
    """Of an artifact that is whole."""
    return str(open_artifact(artifact, full=True).manifest.model["dtype"])


@pytest.mark.parametrize("seed", KILLS)
def test_kill(seed: int, model: Path, old: tuple[Path, float], tmp_path: Path) -> None:
    """Nothing but hidden leftovers, which the next compilation clears; an old artifact stays, or comes back then."""
    out, replaced = tmp_path / "out" / "artifact", seed % 2 == 1
    out.parent.mkdir()
    if replaced:
        shutil.copytree(old[0], out)
    delay = random.Random(seed).uniform(0, old[1])
    status, _ = stopped(arguments(model, out, "--force"), signal.SIGKILL, delay)
    names = set(os.listdir(out.parent)) - {"artifact"}
    assert all(name.startswith(".artifact.deepzig-") for name in names) and len(names) <= 1
    if out.exists():
        assert dtype(out) in ({"bf16", "f32"} if replaced else {"bf16"})
    clear_leftovers(out)
    assert os.listdir(out.parent) == (["artifact"] if replaced or out.exists() else [])
    assert status == -signal.SIGKILL or dtype(out) == "bf16"
    if replaced:
        assert dtype(out) in {"bf16", "f32"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("seed", [pytest.param(i, marks=pytest.mark.slow) for i in range(6)])
def test_interrupt(seed: int, number: signal.Signals, model: Path, old: tuple[Path, float], tmp_path: Path) -> None:
    """Told so, and all is as before."""
    out, replaced = tmp_path / "out" / "artifact", seed % 2 == 1
    out.parent.mkdir()
    if replaced:
        shutil.copytree(old[0], out)
    delay = random.Random(f"{seed} {number}").uniform(0, old[1])
    status, told = stopped(arguments(model, out, "--force"), number, delay)
    assert (status, told) in [(130, "interrupted; nothing was written\n"), (0, "")]
    assert os.listdir(out.parent) == (["artifact"] if replaced or not status else [])
    if replaced or not status:
        assert dtype(out) == ("f32" if status else "bf16")


def test_an_interrupt_comes_through_tvm() -> None:
    """TVM calls Python that is interrupted."""

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tvm_ffi.convert(interrupt)()


@pytest.mark.slow
def test_leftovers_are_cleared_by_the_next(model: Path, tmp_path: Path) -> None:
    """A real one of a killed process; folders of the living, and what only looks alike, are let be."""
    out = tmp_path / "artifact"
    with started(arguments(model, out)) as process:
        while not any(name.startswith(".artifact.deepzig-") for name in os.listdir(tmp_path)):
            time.sleep(0.005)
        left = set(os.listdir(tmp_path))
        clear_leftovers(out)
        assert set(os.listdir(tmp_path)) == left, "its process lives"
        process.kill()
    assert set(os.listdir(tmp_path)) == left
    (tmp_path / ".artifact.precious").mkdir()
    (tmp_path / ".other.deepzig-0123").mkdir()
    done = subprocess.run(arguments(model, out), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert set(os.listdir(tmp_path)) == {"artifact", ".artifact.precious", ".other.deepzig-0123"}
    assert dtype(out) == "bf16"


def limit(size: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def told_full(done: subprocess.CompletedProcess[str], where: object) -> None:
    lines = done.stderr.splitlines()
    assert done.returncode == 2 and len(lines) == 3 and done.stdout == ""
    assert lines[0] in {
        "error: the artifact can't be written: No space left on device",
        "error: the artifact can't be written: File too large",
    }
    assert lines[1].startswith(f"  at: {where}") and lines[2] == "  fix: make room and compile again"


@pytest.mark.slow
@pytest.mark.parametrize("size", [20_000, 1_000_000])
def test_files_that_may_not_grow(size: int, model: Path, tmp_path: Path) -> None:
    """Whoever meets the limit, linker or writer, it is told as a full disk."""
    out = tmp_path / "out" / "artifact"
    out.parent.mkdir()
    done = subprocess.run(arguments(model, out), capture_output=True, text=True, preexec_fn=limit(size))
    told_full(done, out.parent)
    assert os.listdir(out.parent) == []


@pytest.fixture
def disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A disk of its own with `request.param` bytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={request.param}", "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a small disk takes root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("disk", [4096, 65536, 1 << 20, 3 << 20], indirect=True)
def test_a_small_disk(model: Path, disk: Path) -> None:
    done = subprocess.run(arguments(model, disk / "artifact"), capture_output=True, text=True)
    told_full(done, disk)
    assert os.listdir(disk) == []


@pytest.mark.slow
@pytest.mark.parametrize("disk", [8 << 20], indirect=True)
def test_a_disk_too_small_for_two(model: Path, old: tuple[Path, float], disk: Path) -> None:
    """The old artifact stays, whole."""
    shutil.copytree(old[0], disk / "artifact")
    (disk / "more").write_bytes(bytes(2 << 20))
    done = subprocess.run(arguments(model, disk / "artifact", "--force"), capture_output=True, text=True)
    told_full(done, disk)
    assert sorted(os.listdir(disk)) == ["artifact", "more"] and dtype(disk / "artifact") == "f32"


@pytest.mark.slow
@pytest.mark.parametrize("disk", [16384], indirect=True)
def test_a_full_disk_for_the_dump(model: Path, disk: Path, tmp_path: Path) -> None:
    out = tmp_path / "out" / "artifact"
    done = subprocess.run(arguments(model, out, "--dump-ir", disk / "ir"), capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: the IR can't be written: No space left on device\n  at: {disk / 'ir'}\n"
        "  fix: name another folder with --dump-ir\n"
    )
    assert not out.parent.exists()


@pytest.mark.slow
@pytest.mark.parametrize("disk", [65536], indirect=True)
def test_a_disk_that_is_read_only(model: Path, disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    done = subprocess.run(arguments(model, disk / "artifact"), capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: the artifact can't be written: Read-only file system\n  at: {disk / 'artifact'}\n"
        "  fix: check the path and its permissions\n"
    )


def test_the_checkpoint_is_never_replaced(model: Path, tmp_path: Path) -> None:
    """Not even where it looks like an artifact, or lies within one."""
    copy = shutil.copytree(model, tmp_path / "checkpoint" / "inner")
    before = {p: p.read_bytes() for p in copy.iterdir()}
    (tmp_path / "link").symlink_to(tmp_path / "checkpoint")
    fake = json.dumps({"format": 4, "created_by": "deepzig", "files": {}})
    (tmp_path / "checkpoint" / "manifest.json").write_text(fake)
    for out in (copy, copy.parent, tmp_path / "link"):
        with pytest.raises(DeepZigError) as caught:
            compile_model(copy, out, Options(force=True))
        message = f"the output would replace the checkpoint\n  at: {out}\n  fix: choose another folder"
        assert str(caught.value) == message
    assert {p: p.read_bytes() for p in copy.iterdir()} == before


def test_an_output_within_the_checkpoint(model: Path, tmp_path: Path) -> None:
    """Is as good as any; the checkpoint stays as it is."""
    copy = shutil.copytree(model, tmp_path / "checkpoint")
    before = {p: p.read_bytes() for p in copy.iterdir()}
    compile_model(copy, copy / "deep" / "artifact", Options(self_check="none"))
    assert dtype(copy / "deep" / "artifact") == "bf16"
    assert {p: p.read_bytes() for p in copy.iterdir() if p.is_file()} == before
