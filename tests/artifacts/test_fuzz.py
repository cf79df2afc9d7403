"""Fuzzing what reads files of others: an answer or a DeepZigError, never a crash, a hang or another exception.

The slow part tries 10,000 cases a reader. For more:

    DEEPZIG_FUZZ=1000000 .venv/bin/pytest -m slow tests/artifacts/test_fuzz.py
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deepzig.artifacts.machines import Machine
from deepzig.artifacts.manifest import Manifest
from deepzig.artifacts.pack import pack
from deepzig.artifacts.package import read_package
from deepzig.artifacts.reader import map_weights, open_artifact
from deepzig.artifacts.selfcheck import SelfCheck
from deepzig.errors import DeepZigError
from deepzig.tensorfile import read_header

from . import made

MACHINE = Machine("x86_64-linux", frozenset({"avx2", "fma"}))
MANY = int(os.environ.get("DEEPZIG_FUZZ", "10000"))
NASTY = (
    None, True, -1, 0, 1.5, 1e308, float("nan"), float("inf"), 2**31, 2**63, 10**40, "", "x", "\0", "../x", "n",
    "\ud800", [], [[]], {}, {"": None}, "x" * 300,
)  # fmt: skip
"""Values that readers stumble over."""


def fuzz(count: int) -> Callable[[Any], Any]:
    return settings(
        max_examples=count, derandomize=True, deadline=None, database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )  # fmt: skip


def amounts(test: Callable[[Any, int], None]) -> Callable[..., None]:
    """A few cases in the fast part, many in the slow."""
    return pytest.mark.parametrize("count", [150, pytest.param(MANY, marks=pytest.mark.slow)])(test)


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Bytes flipped, cut, doubled, moved or put in."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at, length = rng.randrange(len(out) + 1), rng.choice((1, 2, 8, 40))
        kind = rng.randrange(6)
        if kind == 0 and at < len(out):
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del out[at : at + length]
        elif kind == 2:
            out[at:at] = out[at : at + length]
        elif kind == 3:
            out[at:at] = rng.randbytes(length)
        elif kind == 4:
            del out[at:]
        else:
            out[at : at + 8] = rng.choice((b"\xff" * 8, bytes(8), b"\xff\xff\xff\x7f", b"[[[[[[[[", b"99999999"))
    return bytes(out)


def places(data: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) of a JSON value."""
    pairs = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in list(pairs):
        yield data, key
        yield from places(value)


def rearranged(data: Any, rng: random.Random) -> Any:
    """A JSON value with some of its values replaced, removed, doubled or exchanged."""
    data = json.loads(json.dumps(data))
    for _ in range(rng.randint(1, 3)):
        spots = list(places(data))
        if not spots:
            return deepcopy(rng.choice(NASTY))
        where, key = rng.choice(spots)
        kind = rng.randrange(4)
        if kind == 0:
            del where[key]
        elif kind == 1:
            other, other_key = rng.choice(spots)
            where[key] = deepcopy(other[other_key])
        elif kind == 2 and isinstance(where, list):
            where.append(deepcopy(where[key]))
        else:
            where[key] = deepcopy(rng.choice(NASTY))
    return data


def text_of(data: Any, rng: random.Random) -> bytes:
    """Rearranged JSON, and sometimes its bytes mutated too."""
    raw = json.dumps(rearranged(data, rng)).encode("utf-8", "replace")
    return mutated(raw, rng) if rng.random() < 0.3 else raw


@amounts
def test_manifest(count: int) -> None:
    """What is accepted can be written and read again."""
    accepted = 0

    @fuzz(count)
    @given(st.integers(0, 2**60))
    def run(seed: int) -> None:
        nonlocal accepted
        text = text_of(made.manifest_json(), random.Random(seed)).decode("utf-8", "replace")
        try:
            manifest = Manifest.from_text(text, "fuzz")
        except DeepZigError as error:
            assert error.where == "fuzz" and len(str(error).splitlines()) == 3
            return
        accepted += 1
        assert Manifest.from_text(manifest.to_json(), "fuzz") == manifest

    run()
    assert accepted


@amounts
def test_safetensors(count: int, tmp_path: Path) -> None:
    """What is accepted lies within the file, end to end."""
    made.write(tmp_path / "artifact")
    whole = (tmp_path / "artifact" / "weights-00001.safetensors").read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header, file = json.loads(whole[8 : 8 + length]), tmp_path / "fuzz.safetensors"
    seen = {"accepted": 0, "refused": 0}

    @fuzz(count)
    @given(st.integers(0, 2**60))
    def run(seed: int) -> None:
        rng = random.Random(seed)
        if rng.random() < 0.5:
            data = mutated(whole, rng)
        else:
            raw = text_of(header, rng)
            data = len(raw).to_bytes(8, "little") + raw + whole[8 + length :]
        file.write_bytes(data)
        try:
            entries = read_header(file)
        except DeepZigError as error:
            seen["refused"] += 1
            assert str(file) in error.where and len(str(error).splitlines()) == 3
            return
        seen["accepted"] += 1
        at = 8 + int.from_bytes(data[:8], "little")
        for entry in entries.values():
            assert at == entry.begin <= entry.end <= len(data)
            at = entry.end
        assert at == len(data)

    run()
    assert min(seen.values())


@amounts
def test_package(count: int, tmp_path: Path) -> None:
    made.write(tmp_path / "artifact")
    pack(tmp_path / "artifact", tmp_path / "a.deepzig")
    whole, file = (tmp_path / "a.deepzig").read_bytes(), tmp_path / "fuzz.deepzig"

    @fuzz(count)
    @given(st.integers(0, 2**60))
    def run(seed: int) -> None:
        data = mutated(whole, random.Random(seed))
        file.write_bytes(data)
        try:
            members = read_package(file)
        except DeepZigError as error:
            assert len(str(error).splitlines()) == 3
            return
        assert all(m.begin % 64 == 0 and m.begin + m.size <= len(data) for m in members.values())

    run()


VECTORS = {
    "layers": [0, 2], "pages": 3,
    "calls": [
        {
            "entry": "decode", "inputs": {"tokens": [1, 2], "hidden": {"seed": 3, "shape": [2, 5]}},
            "sketches": {"4.0": {"shape": [2, 5], "norm": 1.5, "projections": [1, 2, -3, 4.5]}},
            "forced": {"4.0": {"seed": 7, "shape": [2, 5]}}, "choices": [{"values": {"5": [[1, 2]]}, "unsure": [0]}],
        }
    ],
}  # fmt: skip


@amounts
def test_self_check_vectors(count: int) -> None:
    @fuzz(count)
    @given(st.integers(0, 2**60))
    def run(seed: int) -> None:
        text = text_of(VECTORS, random.Random(seed)).decode("utf-8", "replace")
        try:
            SelfCheck.from_text(text, "fuzz")
        except DeepZigError as error:
            assert error.where == "fuzz" and len(str(error).splitlines()) == 3

    run()


@amounts
def test_whole_artifacts(count: int, tmp_path: Path) -> None:
    """Any part mutated: weights that are accepted can be mapped, each where it is aligned and of its size."""
    root = made.write(tmp_path / "artifact")
    parts = {p: p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}
    data = json.loads((root / "manifest.json").read_text())

    @fuzz(max(count // 5, 60))
    @given(st.integers(0, 2**60))
    def run(seed: int) -> None:
        rng = random.Random(seed)
        part = rng.choice(list(parts))
        rewritten = text_of(data, rng) if part.name == "manifest.json" else mutated(parts[part], rng)
        part.write_bytes(rewritten)
        try:
            artifact = open_artifact(root, rng.random() < 0.5, MACHINE)
        except DeepZigError as error:
            assert len(str(error).splitlines()) == 3
        else:
            for entry, view in map_weights(artifact).values():
                assert view.nbytes == entry.end - entry.begin and view.ctypes.data % 64 == 0
        finally:
            part.write_bytes(parts[part])

    run()
