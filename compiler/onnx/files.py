"""The model's file and those beside it: all of them when they are complete, or none."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from deepzig.artifacts.workplace import NEW, Workplace, clear_leftovers
from deepzig.artifacts.writer import disk_errors
from deepzig.errors import DeepZigError

DATA, VECTORS = ".data", ".vectors"
"""Weights and self-check vectors are called as the model, and this behind it."""


@contextmanager
def written_together(path: Path, beside: Mapping[str, Path | bytes], force: bool) -> Iterator[Path]:
    """A folder for the model, its weights and its vectors; they move to their places when the context ends well.

    Args:
        path: the model's file.
        beside: name -> file or content, of what else is put beside it.
        force: replace files that are there.

    Raises:
        DeepZigError: one of the files is there already, or can't be written.
    """
    clear_leftovers(path)
    _check_free(path, beside, force)
    with disk_errors(path, "export", "ONNX model"):
        work = Workplace(path)
        try:
            new = work.folder / NEW
            for name, content in beside.items():
                (new / name).parent.mkdir(parents=True, exist_ok=True)
                (new / name).write_bytes(_bytes(content))
            yield new
            _publish(new, path)
        finally:
            work.close()


def _publish(new: Path, path: Path) -> None:
    """Move all files, the model last: where it is, all that it needs is, too."""
    path.unlink(missing_ok=True)  # a model beside the weights of another would be worse than none
    for file in sorted((f for f in new.rglob("*") if f.is_file()), key=lambda f: f.name == path.name):
        place = path.parent / file.relative_to(new)
        place.parent.mkdir(parents=True, exist_ok=True)
        os.replace(file, place)


def _check_free(path: Path, beside: Mapping[str, Path | bytes], force: bool) -> None:
    if path.is_dir():
        raise DeepZigError("the output is a folder", str(path), "name a file, such as model.onnx in it")
    if force:
        return
    hint = "choose another folder, or replace what is there with --force"
    for place in (path, path.with_name(path.name + DATA), path.with_name(path.name + VECTORS)):
        if os.path.lexists(place):
            raise DeepZigError("the output is there already", str(place), hint)
    for name, content in beside.items():
        place = path.parent / name
        if os.path.lexists(place) and not (place.is_file() and place.read_bytes() == _bytes(content)):
            raise DeepZigError("a file beside the output is another model's", str(place), hint)


def _bytes(content: Path | bytes) -> bytes:
    return content if isinstance(content, bytes) else content.read_bytes()
