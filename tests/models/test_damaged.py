"""Damaged checkpoints: each is refused by the name of its file and tensor, in three lines, word for word."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deepzig.compiler.driver import fuse
from deepzig.compiler.options import Options
from deepzig.errors import DeepZigError
from deepzig.tensorfile import MAX_HEADER

from .damages import GIVE_FOLDER, HEAD, HEADERS, INDEX, SHARD, SINGLE, TENSORS, WEIGHTS, Damage
from .file_damages import CONFIGS, FILES
from .folders import write

ALL = (*HEADERS, *TENSORS, *FILES, *CONFIGS)


@pytest.mark.parametrize("damage", ALL, ids=lambda d: d.name)
def test_refused(damage: Damage, tmp_path: Path) -> None:
    folder = write(tmp_path / "model", WEIGHTS)
    damage.make(folder)
    with pytest.raises(DeepZigError) as error:
        fuse(folder, Options())
    where = damage.where.replace("{f}", str(folder))
    assert str(error.value) == f"{damage.what}\n  at: {where}\n  fix: {damage.hint}"
    assert len(str(error.value).splitlines()) == 3


def test_each_in_a_way_of_its_own() -> None:
    assert len({d.name for d in ALL}) == len(ALL) >= 60


def test_undamaged(tmp_path: Path) -> None:
    fuse(write(tmp_path, WEIGHTS, shards=3), Options())


@pytest.mark.parametrize("name", [SINGLE, "config.json"])
def test_files_that_the_system_refuses(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path, WEIGHTS)
    opened = Path.open

    def refuse(path: Path, *args: Any, **options: Any) -> Any:
        if path.name == name:
            raise PermissionError(13, "Permission denied")
        return opened(path, *args, **options)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DeepZigError) as error:
        fuse(folder, Options())
    assert (error.value.what, error.value.where) == ("the file can't be read: Permission denied", f"{folder / name}")


def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    folder = write(tmp_path, WEIGHTS)
    checkpoint = fuse(folder, Options())[0].checkpoint
    os.truncate(folder / SINGLE, (folder / SINGLE).stat().st_size - 5)
    with pytest.raises(DeepZigError) as error:
        checkpoint.read(HEAD)
    assert error.value.what == "the file became shorter while it was read"
    assert error.value.where == f"{folder / SINGLE}, tensor {HEAD}"
    (folder / SINGLE).unlink()
    with pytest.raises(DeepZigError, match="the file can't be read: No such file or directory"):
        checkpoint.read(HEAD)


def test_a_huge_index_is_read_in_a_moment(tmp_path: Path) -> None:
    """And a header is never read beyond the format's limit."""
    write(tmp_path, WEIGHTS, shards=3)
    names = {f"model.layers.{i}.x": SHARD for i in range(200_000)}
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": names}))
    with pytest.raises(DeepZigError) as error:
        fuse(tmp_path, Options())
    assert error.value.what == "the shard lacks a tensor that the index names"
    sparse = tmp_path / SINGLE
    with sparse.open("wb") as file:
        file.write((MAX_HEADER + 1).to_bytes(8, "little"))
        file.truncate(MAX_HEADER + 1000)
    with pytest.raises(DeepZigError) as error:
        fuse(tmp_path, Options())
    assert error.value.what == f"the header claims {MAX_HEADER + 1} bytes, the file has {MAX_HEADER + 1000}"


@pytest.mark.parametrize(
    ("make", "what", "hint"),
    [
        (lambda f: None, "there is no such folder", GIVE_FOLDER),
        (
            lambda f: f.write_bytes(b"x"),
            "the file is neither GGUF nor a checkpoint folder",
            "name a .gguf file, or a folder that holds config.json, such as {p}",
        ),
        (
            lambda f: write(f / "inner", WEIGHTS),
            "the folder has no config.json, but a folder in it has",
            "name that one: {f}/inner",
        ),
        (
            lambda f: write(f / "snapshots" / "ab12", WEIGHTS),
            "the folder is a model in Hugging Face's cache",
            "name the snapshot in it: {f}/snapshots/ab12",
        ),
        (
            lambda f: [f.mkdir(), (f / "manifest.json").touch()],
            "the folder is an artifact, compiled already",
            "run it: deepzig run {f}",
        ),
        (
            lambda f: [f.mkdir(), (f / "adapter_config.json").touch()],
            "the folder holds an adapter, not a whole model",
            "merge it into its base model first",
        ),
    ],
)
def test_what_is_no_checkpoint(make: Callable[[Path], object], what: str, hint: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    make(folder)
    with pytest.raises(DeepZigError) as error:
        fuse(folder, Options())
    told = hint.format(f=folder, p=tmp_path)
    assert str(error.value) == f"{what}\n  at: {folder}\n  fix: {told}"
