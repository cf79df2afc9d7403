"""The writer: everything or nothing."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deepzig.artifacts import workplace
from deepzig.artifacts import writer as module
from deepzig.artifacts.machines import Machine
from deepzig.artifacts.manifest import Manifest
from deepzig.artifacts.reader import open_artifact
from deepzig.artifacts.workplace import OLD, clear_leftovers
from deepzig.artifacts.writer import ALIGNMENT, ArtifactWriter
from deepzig.errors import DeepZigError
from deepzig.tensorfile import read_header

from . import made

MACHINE = Machine("x86_64-linux", frozenset({"avx2", "fma"}))


def manifest() -> Manifest:
    return Manifest.from_json(made.manifest_json(), "test")


def test_sizes_hashes_and_payloads(tmp_path: Path) -> None:
    out = made.write(tmp_path / "deep" / "out")
    files = json.loads((out / "manifest.json").read_text())["files"]
    on_disk = {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*") if p.is_file()}
    del on_disk["manifest.json"]
    want = {n: {"size": len(b), "sha256": hashlib.sha256(b).hexdigest()} for n, b in on_disk.items()}
    assert files == want
    raw = on_disk["weights-00001.safetensors"]
    entries = read_header(out / "weights-00001.safetensors")
    for name, (_, weight) in made.WEIGHTS.items():
        entry = entries[name]
        assert entry.begin % ALIGNMENT == 0
        assert raw[entry.begin : entry.end] == weight.tobytes()
        assert entry.shape == weight.shape
    assert {n for n in entries if n not in made.WEIGHTS} == {n for n in entries if n.startswith("_pad.")}
    assert os.listdir(tmp_path / "deep") == ["out"]
    assert (out.stat().st_mode & 0o777) == 0o755


@pytest.mark.parametrize("shard_bytes", [1, 300, 1100])
def test_shards(tmp_path: Path, shard_bytes: int) -> None:
    """No shard is larger than asked, but for a tensor that alone is; every weight is in one of them, aligned."""
    out = made.write(tmp_path / "out", shard_bytes=shard_bytes)
    shards = sorted(out.glob("weights-*.safetensors"))
    assert [s.name for s in shards] == [f"weights-{i:05}.safetensors" for i in range(1, len(shards) + 1)]
    found: dict[str, bytes] = {}
    for shard in shards:
        kept = {n: e for n, e in read_header(shard).items() if not n.startswith("_pad.")}
        assert len(kept) == 1 or max(e.end for e in kept.values()) - min(e.begin for e in kept.values()) <= shard_bytes
        assert all(e.begin % ALIGNMENT == 0 for e in kept.values())
        found |= {n: shard.read_bytes()[e.begin : e.end] for n, e in kept.items()}
    assert found == {n: w.tobytes() for n, (_, w) in made.WEIGHTS.items()}
    assert len(shards) == {1: 4, 300: 3, 1100: 2}[shard_bytes]
    open_artifact(out, full=True, machine=MACHINE)


@pytest.mark.parametrize("stop", [RuntimeError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("step", ["before", "weights", "filled"])
def test_nothing_is_left_after_an_exception(tmp_path: Path, stop: type[BaseException], step: str) -> None:
    def work() -> None:
        with ArtifactWriter(tmp_path / "out") as writer:
            if step == "filled":
                made.fill(writer)
            if step == "weights":
                with writer.weights() as file:
                    file.declare("a", "f32", (5,))
                    file.declare("b", "f32", (5,))
                    file.write("a", [np.ones(5, np.float32)])
                    raise stop
            raise stop

    with pytest.raises(stop):
        work()
    assert os.listdir(tmp_path) == []


def test_nothing_appears_without_finish(tmp_path: Path) -> None:
    with ArtifactWriter(tmp_path / "out") as writer:
        made.fill(writer)
        assert not (tmp_path / "out").exists()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("limit", [1, 20, 300, 1200, 3000])
@pytest.mark.parametrize("old", [False, True])
def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, old: bool) -> None:
    """It fills up after so many bytes: three lines, no folder, and what was there before is still there."""
    out = tmp_path / "out"
    if old:
        made.write(out)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    room = limit
    write = module._Part.write

    def full(self: Any, block: bytes) -> None:
        nonlocal room
        room -= len(block)
        if room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self, block)

    def full_sync(descriptor: int) -> None:
        """Some file systems tell only now; the manifest is the last to be synced."""
        if limit == 3000 and os.fstat(descriptor).st_size > 2000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module._Part, "write", full)
    monkeypatch.setattr(os, "fsync", full_sync)
    with pytest.raises(DeepZigError) as caught:
        made.write(out, force=True)
    assert str(caught.value) == (
        f"the artifact can't be written: No space left on device\n  at: {out}\n  fix: make room and compile again"
    )
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    assert os.listdir(tmp_path) == (["out"] if old else [])


def refusal(out: Path, force: bool) -> str:
    with pytest.raises(DeepZigError) as caught:
        ArtifactWriter(out, force)
    return str(caught.value)


def test_a_folder_that_is_no_artifact_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    for force in (False, True):
        assert refusal(tmp_path / "out", force) == (
            f"the output folder is not empty\n  at: {tmp_path}/out\n"
            "  fix: choose another folder; only an artifact is ever replaced"
        )
    assert os.listdir(tmp_path) == ["out"]


def test_a_file_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("x")
    for force in (False, True):
        what = "the output is a file"
        assert refusal(tmp_path / "out", force) == f"{what}\n  at: {tmp_path}/out\n  fix: choose another folder"


def test_an_artifact_is_replaced_only_by_force(tmp_path: Path) -> None:
    out = made.write(tmp_path / "out")
    (out / "stray").write_text("of the old one")
    assert refusal(out, False) == (
        f"the output folder is not empty\n  at: {out}\n  fix: choose another folder, or replace it with --force"
    )
    made.write(out, force=True)
    assert not (out / "stray").exists() and os.listdir(tmp_path) == ["out"]
    open_artifact(out, full=True, machine=MACHINE)


def test_an_empty_folder_is_used(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    made.write(tmp_path / "out")
    open_artifact(tmp_path / "out", machine=MACHINE)
    assert os.listdir(tmp_path) == ["out"]


def test_what_appeared_while_compiling_is_not_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with ArtifactWriter(out, force=True) as writer:
        made.fill(writer)
        out.mkdir()
        (out / "thesis.tex").write_text("years of work")
        with pytest.raises(DeepZigError, match="not empty"):
            writer.finish(manifest())
    assert os.listdir(tmp_path) == ["out"] and os.listdir(out) == ["thesis.tex"]


def test_the_old_artifact_returns_if_the_rename_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = made.write(tmp_path / "out")
    (out / "mark").write_text("old")
    rename = os.rename

    def fail(source: Any, target: Any) -> None:
        if Path(target) == out and Path(source).name != "artifact":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail)
    monkeypatch.setattr(workplace, "_exchange", lambda a, b: False)  # a system that can't
    with pytest.raises(DeepZigError) as caught:
        made.write(out, force=True)
    assert caught.value.what == "the artifact can't be written: Input/output error"
    assert (out / "mark").read_text() == "old" and os.listdir(tmp_path) == ["out"]


def test_a_parent_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    message = refusal(tmp_path / "file" / "out", False)
    assert message == (
        f"the artifact can't be written: File exists\n  at: {tmp_path}/file/out\n"
        "  fix: check the path and its permissions"
    )


def test_weights_must_be_written_as_declared(tmp_path: Path) -> None:
    ones = [np.ones(3, np.float32)]
    with ArtifactWriter(tmp_path / "out") as writer:
        with pytest.raises(ValueError, match="a is next, not b"), writer.weights() as file:
            file.declare("a", "f32", (3,))
            file.declare("b", "f32", (3,))
            file.write("b", ones)
        with pytest.raises(ValueError, match="a has 16 bytes, 12 were written"), writer.weights() as file:
            file.declare("a", "f32", (4,))
            file.write("a", ones)
        with pytest.raises(ValueError, match="b was declared and not written"), writer.weights() as file:
            file.declare("a", "f32", (3,))
            file.declare("b", "f32", (3,))
            file.write("a", ones)


def test_a_manifest_of_another_program(tmp_path: Path) -> None:
    """Such a folder is no artifact, whatever --force says."""
    out = tmp_path / "extension"
    out.mkdir()
    for text in ('{"manifest_version": 3, "name": "a browser extension"}', "[]", "{", "[" * 100_000, ""):
        (out / "manifest.json").write_text(text)
        assert refusal(out, True) == (
            f"the output folder is not empty\n  at: {out}\n"
            "  fix: choose another folder; only an artifact is ever replaced"
        )


def test_a_broken_link(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to(tmp_path / "nowhere")
    message = f"the output is a broken link\n  at: {tmp_path}/out\n  fix: choose another folder"
    assert refusal(tmp_path / "out", True) == message


def test_an_artifact_that_was_moved_aside_comes_back(tmp_path: Path) -> None:
    """A process was killed between the two renames; what lies about and is no folder of ours is let be."""
    out = made.write(tmp_path / "out")
    left = tmp_path / ".out.deepzig-00c0ffee"
    left.mkdir()
    out.rename(left / OLD)
    (tmp_path / ".out.deepzig-link").symlink_to(tmp_path)
    (tmp_path / ".out.deepzig-file").write_text("x")
    clear_leftovers(out)
    open_artifact(out, full=True, machine=MACHINE)
    assert set(os.listdir(tmp_path)) == {"out", ".out.deepzig-link", ".out.deepzig-file"}


def test_a_folder_that_was_taken_for_a_leftover(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process cleared it between its making and its locking: it is made again."""
    hold, calls = workplace._hold, []

    def late(folder: Path, wait: bool) -> int | None:
        calls.append(folder)
        if len(calls) == 1:
            shutil.rmtree(folder)
            return None
        return hold(folder, wait)

    monkeypatch.setattr(workplace, "_hold", late)
    open_artifact(made.write(tmp_path / "out"), full=True, machine=MACHINE)
    assert len(calls) == 2 and os.listdir(tmp_path) == ["out"]


def test_an_interrupt_does_not_stop_the_clearing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rmtree, calls = shutil.rmtree, []

    def interrupted(folder: Path, ignore_errors: bool) -> None:
        calls.append(folder)
        if len(calls) < 3:
            raise KeyboardInterrupt
        rmtree(folder, ignore_errors)

    monkeypatch.setattr(workplace.shutil, "rmtree", interrupted)
    open_artifact(made.write(tmp_path / "out"), full=True, machine=MACHINE)
    assert len(calls) == 3 and os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("name", ["../x", "/x", "C:x", ""])
def test_a_part_outside_is_not_written(name: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with ArtifactWriter(out) as writer, pytest.raises(DeepZigError) as caught:
        writer.add_file(name, b"x")
    assert caught.value.what == "a part lies outside the artifact" and caught.value.where == f"{out}, file {name!r}"
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("able", [True, False])
def test_replacing(able: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once where the system can, else by two renames."""
    out = made.write(tmp_path / "out")
    (out / "mark").write_text("old")
    if not able:
        monkeypatch.setattr(workplace, "_exchange", lambda a, b: False)
    made.write(out, force=True)
    assert not (out / "mark").exists() and os.listdir(tmp_path) == ["out"]
