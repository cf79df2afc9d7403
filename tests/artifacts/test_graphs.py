"""graphs.json, read with suspicion."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deepzig.artifacts import graphs
from deepzig.artifacts.graphs import GRAPHS, Graphs, Node, Params, Section, read_graphs
from deepzig.artifacts.reader import read_manifest
from deepzig.errors import DeepZigError

from . import made

DATA: dict[str, Any] = {
    "blocks": [
        [{"op": "embed", "inputs": ["%0", {"params": ["w"], "type": "bf16[7, 3]"}], "outputs": ["f32[n, 3]"],
          "attrs": {}, "where": "d:1"}],
        [{"op": "rms_norm", "inputs": ["%0", None], "outputs": ["f32[n, 3]"], "attrs": {"eps": 1e-6}, "where": "d:2"},
         {"op": "topk", "inputs": [0], "outputs": ["i32[n, 2]", "f32[n, 2]"], "attrs": {"shape": ["n", 2]},
          "where": "d:3", "replaces": [0]}],
    ],
    "graphs": {
        "decode": {
            "inputs": [["tokens", "i32[n]"]],
            "before": {
                "sections": [
                    {"layer": None, "block": 0, "reads": ["tokens"], "values": ["0"]},
                    {"layer": 0, "block": 1, "reads": ["0"], "values": ["1", "2.0", "2.1"]},
                    {"layer": 1, "block": 1, "reads": ["2.0"], "values": ["3", "4.0", "4.1"]},
                ],
                "outputs": ["4.0"],
            },
            "after": {"sections": [], "outputs": []},
        }
    },
}  # fmt: skip


def store(artifact: Path, content: bytes) -> None:
    """Put graphs.json into an artifact, as its manifest says."""
    (artifact / GRAPHS).write_bytes(content)
    entry = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    made.edit(artifact, lambda manifest: manifest["files"].update({GRAPHS: entry}))


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    return made.write(tmp_path / "out")


def read(artifact: Path) -> Graphs | None:
    return read_graphs(artifact, read_manifest(artifact))


def refusal(artifact: Path) -> str:
    with pytest.raises(DeepZigError) as caught:
        read(artifact)
    return str(caught.value)


def test_what_is_read(artifact: Path) -> None:
    store(artifact, json.dumps(DATA).encode())
    known = read(artifact)
    assert known is not None
    assert known.blocks[0] == (Node("embed", ("%0", Params(("w",), "bf16[7, 3]")), ("f32[n, 3]",), {}, "d:1", ()),)
    assert known.blocks[1][1].replaces == (0,) and known.blocks[1][1].attrs == {"shape": ["n", 2]}
    decode = known.graphs["decode"]
    assert decode.inputs == (("tokens", "i32[n]"),) and decode.before.outputs == ("4.0",)
    assert decode.before.sections[2] == Section(1, 1, ("2.0",), ("3", "4.0", "4.1"))


def test_an_artifact_without_graphs(artifact: Path) -> None:
    assert read(artifact) is None


def test_a_part_as_any_other(artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy_again = "copy or compile the artifact again"
    store(artifact, json.dumps(DATA).encode())
    part = artifact / GRAPHS
    size = part.stat().st_size
    part.write_bytes(part.read_bytes()[:-1] + b" ")
    changed = "the file was changed: its SHA-256 differs from the manifest's"
    assert refusal(artifact) == f"{changed}\n  at: {part}\n  fix: {copy_again}"
    part.write_bytes(b"{}")
    assert refusal(artifact) == f"the file has 2 bytes, not {size}\n  at: {part}\n  fix: {copy_again}"
    part.unlink()
    assert refusal(artifact) == f"a part is missing\n  at: {part}\n  fix: {copy_again}"
    part.symlink_to(tmp_path)
    assert refusal(artifact) == f"a part is a symbolic link\n  at: {part}\n  fix: copy the file itself"
    part.unlink()
    store(artifact, b"{}")
    monkeypatch.setattr(graphs, "MAX_BYTES", 1)
    assert refusal(artifact) == f"the file is too large\n  at: {part}\n  fix: {copy_again}"


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000, b'{"a": 1e999, "b": '])
def test_no_json(content: bytes, artifact: Path) -> None:
    store(artifact, content)
    assert refusal(artifact) == f"the graphs are not JSON\n  at: {artifact / GRAPHS}\n  fix: compile the model again"


def at(*path: Any) -> Callable[[Any], tuple[Any, Any]]:
    """The container and the last key of a path into the data."""

    def find(data: Any) -> tuple[Any, Any]:
        for key in path[:-1]:
            data = data[key]
        return data, path[-1]

    return find


SECTION = ("graphs", "decode", "before", "sections", 1)
HOSTILE = [
    (("blocks",), {}),
    (("blocks",), None),
    (("blocks", 0), 3),
    (("blocks", 0, 0), "embed"),
    (("blocks", 0, 0, "op"), 3),
    (("blocks", 0, 0, "outputs"), "f32"),
    (("blocks", 0, 0, "where"), None),
    (("blocks", 0, 0, "attrs"), [1]),
    (("blocks", 0, 0, "attrs"), {"x": {"y": 1}}),
    (("blocks", 0, 0, "attrs"), {"x": [[1]]}),
    (("blocks", 0, 0, "attrs"), {"x": float("inf")}),
    (("blocks", 0, 0, "attrs"), {"x": float("nan")}),
    (("blocks", 0, 0, "inputs"), ["%1"]),
    (("blocks", 0, 0, "inputs"), ["%-1"]),
    (("blocks", 0, 0, "inputs"), ["%x"]),
    (("blocks", 0, 0, "inputs"), [0]),
    (("blocks", 0, 0, "inputs"), [True]),
    (("blocks", 0, 0, "inputs"), [1.5]),
    (("blocks", 0, 0, "inputs"), [{"params": "w", "type": "f32[1]"}]),
    (("blocks", 0, 0, "inputs"), [{"params": ["w"]}]),
    (("blocks", 1, 1, "inputs"), [1]),
    (("blocks", 1, 1, "inputs"), [-1]),
    (("blocks", 1, 1, "replaces"), [-1]),
    (("blocks", 1, 1, "replaces"), "0"),
    (("graphs",), []),
    (("graphs", "decode"), None),
    (("graphs", "decode", "inputs"), [["tokens"]]),
    (("graphs", "decode", "after"), {}),
    ((*SECTION, "block"), 2),
    ((*SECTION, "block"), -1),
    ((*SECTION, "block"), 0),
    ((*SECTION, "layer"), "0"),
    ((*SECTION, "reads"), []),
    ((*SECTION, "values"), ["1"]),
    ((*SECTION, "values"), [1, 2, 3]),
]


@pytest.mark.parametrize(("path", "value"), HOSTILE)
def test_what_cannot_be_understood(path: tuple[Any, ...], value: Any, artifact: Path) -> None:
    data = copy.deepcopy(DATA)
    container, key = at(*path)(data)
    container[key] = value
    store(artifact, json.dumps(data).encode())
    want = f"the graphs can't be understood\n  at: {artifact / GRAPHS}\n  fix: compile the model again"
    assert refusal(artifact) == want


@pytest.mark.parametrize("value", [[], 3, None, "x"])
def test_no_object(value: Any, artifact: Path) -> None:
    store(artifact, json.dumps(value).encode())
    assert "the graphs can't be understood" in refusal(artifact)


@pytest.mark.parametrize("key", ["op", "inputs", "outputs", "attrs", "where"])
def test_what_is_missing(key: str, artifact: Path) -> None:
    data = copy.deepcopy(DATA)
    del data["blocks"][1][0][key]
    store(artifact, json.dumps(data).encode())
    assert "the graphs can't be understood" in refusal(artifact)
