"""Weights that are cut into pieces, so that no file is large."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deepzig.artifacts.manifest import Manifest
from deepzig.artifacts.reader import open_artifact
from deepzig.artifacts.writer import ArtifactWriter
from deepzig.errors import DeepZigError
from deepzig.tensorfile import read_header

from . import made

SHARD = 4096
RNG = np.random.default_rng(17)
WEIGHTS = {
    "small@raw": RNG.standard_normal(31, np.float32),
    "experts@columns": RNG.standard_normal((37, 3, 16), np.float32),
    "wide@columns": RNG.standard_normal((3, 2000), np.float32),
    "last@raw": RNG.standard_normal((5, 7), np.float32),
}


def write(out: Path, chunk: int = 2) -> Path:
    """An artifact with a plan, whose weights are written a few rows at a time."""
    data = made.manifest_json()
    data["builds"][0] |= {"runtime": None, "plan": "code/plan.json", "platform": "wasm32", "features": []}
    data["weights"] = [{"name": n, "dtype": "f32", "shape": list(w.shape)} for n, w in WEIGHTS.items()]
    for entry in data["entry_points"].values():
        entry["weights"] = []
    with ArtifactWriter(out, shard_bytes=SHARD, cut=True) as writer:
        for part in ("code/x86-64-v3.so", "code/plan.json"):
            writer.add_file(part, b"{}")
        with writer.weights() as file:
            for name, weight in WEIGHTS.items():
                file.declare(name, "f32", weight.shape)
            for name, weight in WEIGHTS.items():
                file.write(name, (weight[i : i + chunk] for i in range(0, len(weight), chunk)))
        writer.finish(Manifest.from_json(data, "test"))
    return out


def pieces(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Every tensor of the weight files, in order."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        for entry in read_header(file).values():
            if not entry.name.startswith("_pad."):
                data = file.read_bytes()[entry.begin : entry.end]
                found[entry.name] = np.frombuffer(data, np.float32).reshape(entry.shape)
    return found


@pytest.mark.parametrize("chunk", [1, 2, 100])
def test_pieces_are_the_weight(tmp_path: Path, chunk: int) -> None:
    """As many rows as fit; a row that is larger than a file is a piece of its own."""
    out = write(tmp_path / "out", chunk)
    found = pieces(out)
    assert list(found) == [
        "small@raw", "experts@columns[0:21]", "experts@columns[21:37]", "wide@columns[0:1]", "wide@columns[1:2]",
        "wide@columns[2:3]", "last@raw",
    ]  # fmt: skip
    for name, weight in WEIGHTS.items():
        parts = [part for piece, part in found.items() if piece.partition("[")[0] == name]
        assert np.array_equal(np.concatenate(parts), weight)
    sizes = sorted(file.stat().st_size for file in out.glob("*.safetensors"))
    assert sizes[-3] > 8000 and sizes[-4] < SHARD + 1000
    assert open_artifact(out, full=True).manifest.weights[1].shape == (37, 3, 16)


def renamed(old: str, new: str) -> Callable[[Path], None]:
    """An edit of a header that keeps its length."""

    def edit(folder: Path) -> None:
        file = next(f for f in folder.glob("*.safetensors") if f'"{old}"'.encode() in f.read_bytes())
        data = file.read_bytes().replace(f'"{old}"'.encode(), f'"{new}"'.encode())
        file.write_bytes(data)

    return edit


AFTER = "a piece of a weight does not follow that of experts@columns up to 21"


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("experts@columns[21:37]", "experts@columns[22:38]", AFTER),
        ("experts@columns[21:37]", "experts@columns[21:36]", AFTER),
        ("experts@columns[21:37]", "another@columns[21:37]", AFTER),
        ("experts@columns[21:37]", "experts@columns[00:16]", "a weight is F32[21, 3, 16], not F32[37, 3, 16]"),
        ("wide@columns[2:3]", "wide@columns[3:4]", "a piece of a weight does not follow that of wide@columns up to 2"),
        ("small@raw", "s_all@raw", "a weight is missing"),
    ],
)  # fmt: skip
def test_pieces_that_do_not_fit(tmp_path: Path, old: str, new: str, what: str) -> None:
    out = write(tmp_path / "out")
    renamed(old, new)(out)
    with pytest.raises(DeepZigError) as caught:
        open_artifact(out)
    assert caught.value.what == what


def test_weights_for_memory_maps_are_whole(tmp_path: Path) -> None:
    """Code with a runtime maps files: what is in pieces is no weight there."""
    out = write(tmp_path / "out")

    def change(data: dict[str, Any]) -> None:
        data["builds"][0] |= {"runtime": "code/plan.json", "plan": None, "platform": "wasm32"}

    made.edit(out, change)
    assert json.loads((out / "manifest.json").read_text())["builds"][0]["plan"] is None
    with pytest.raises(DeepZigError) as caught:
        open_artifact(out)
    assert caught.value.what in ("a weight is missing", "a weight is not in the manifest")
