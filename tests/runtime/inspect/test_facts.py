"""What is told of an artifact, against arithmetic by hand."""

from __future__ import annotations

import json
import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from deepzig.artifacts import cpu_features
from deepzig.artifacts.machines import Machine
from deepzig.errors import DeepZigError
from deepzig.runtime.inspect import Facts, builds, facts, inspect_artifact
from deepzig.runtime.inspect.kernels import LayerKind, ranges
from deepzig.runtime.inspect.memory import PROCESS_BYTES, Speed
from deepzig.runtime.inspect.units import count, parse_size, size
from deepzig.runtime.machine import Memory

from ...artifacts import made
from ...artifacts.test_graphs import DATA, store

HERE = Machine("x86_64-linux", frozenset({"avx2", "fma", "f16c", "bmi2"}))
PAGE = Path(__file__).parents[3] / "docs" / "inspect.md"


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "this_machine", lambda: HERE)
    monkeypatch.setattr(facts, "default_threads", lambda: 3)


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    return made.write(tmp_path / "out")


def told(artifact: Path, ram: int | None = 1 << 30, bandwidth: float | None = None) -> Facts:
    return inspect_artifact(artifact, ram, None if bandwidth is None else lambda: bandwidth)[0]


MEMORY = {
    "weights_bytes": 9_000_001, "experts_bytes": 8_000_000, "head_bytes": 1_000_001, "draft_bytes": 0,
    "cache_bytes_per_token": 192, "workspace_bytes": 70_000, "workspace_bytes_per_thread": 1_000,
    "active_bytes_per_token": 2_000_000, "active_params_per_token": 990_000,
}  # fmt: skip


def test_memory(artifact: Path) -> None:
    """Pages of 16 tokens, a context of at most 300 tokens, three threads."""
    made.edit(artifact, lambda m: m.update(memory=MEMORY))
    fixed = 9_000_001 + 73_000 + PROCESS_BYTES
    memory = told(artifact, fixed + 16 * 192 * 5 + 16 * 192 - 1).memory
    assert (memory.weights, memory.workspace, memory.threads) == (9_000_001, 73_000, 3)
    assert memory.weights_by_kind == {"experts": 8_000_000, "head": 1_000_001}
    assert memory.cache_full_context == 300 * 192
    assert memory.largest_context == memory.cache_tokens == 5 * 16
    for ram, context, tokens in ((fixed - 1, 0, 0), (fixed + 16 * 192, 16, 16), (fixed + 192 * 16 * 30, 300, 480)):
        memory = told(artifact, ram).memory
        assert (memory.largest_context, memory.cache_tokens) == (context, tokens)


def test_memory_that_is_not_known(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "memory", lambda: Memory(None, None))
    memory = told(artifact, None).memory
    assert (memory.ram, memory.largest_context, memory.cache_tokens) == (None, None, None)


def test_speeds(artifact: Path) -> None:
    """Only the caches that decoding reads count: 48 bf16 a token, not those of a draft."""

    def change(m: dict[str, Any]) -> None:
        m["memory"] = MEMORY
        m["cache"].append({"name": "cache.1", "dtype": "bf16", "shape": ["pages", 16, 48]})
        m["bounds"]["positions"] = 5000

    made.edit(artifact, change)
    reading = told(artifact, bandwidth=3e9).reading
    assert reading is not None
    assert (reading.active_bytes, reading.active_params, reading.cache_per_token) == (2_000_000, 990_000, 96)
    depths = (0, 1024, 4096, 5000)
    assert reading.speeds == tuple(Speed(d, 3e9 / (2_000_000 + 96 * d)) for d in depths)
    unmeasured = told(artifact).reading
    assert unmeasured is not None and unmeasured.speeds == () and unmeasured.bandwidth is None


def test_an_artifact_that_does_not_tell_what_a_token_reads(artifact: Path) -> None:
    assert told(artifact).reading is None


def build(name: str, features: list[str], platform: str = "x86_64-linux") -> dict[str, Any]:
    return {**made.manifest_json()["builds"][0], "name": name, "features": features, "platform": platform}


def test_builds(artifact: Path) -> None:
    kinds = [
        build("amx", ["amx-tile", "avx2", "amx-int8"]), build("v3", ["avx2", "fma"]), build("v2", []),
        build("mac", ["neon"], "aarch64-macos"),
    ]  # fmt: skip
    made.edit(artifact, lambda m: m.update(builds=kinds))
    found = {b.name: (b.runs, b.chosen, b.why) for b in told(artifact).builds}
    assert found == {
        "amx": (False, False, "this CPU lacks amx-int8, amx-tile"),
        "v3": (True, True, ""),
        "v2": (True, False, "v3 makes more of this CPU"),
        "mac": (False, False, "this machine is x86_64-linux"),
    }
    assert told(artifact).verdict.runs and told(artifact).verdict.what == "build v3"
    assert told(artifact).kernels_of == "v3"


def test_an_artifact_for_another_platform(artifact: Path) -> None:
    made.edit(artifact, lambda m: m.update(builds=[build("mac", ["neon"], "aarch64-macos")]))
    known = told(artifact)
    assert not known.verdict.runs and known.verdict.mend == "deepzig-compile m --target llvm:cpu=x86-64-v3 -o DIR"
    assert known.verdict.what == "the artifact is for aarch64-macos, this machine is x86_64-linux"
    assert known.kernels_of == "mac" and [k.symbol for k in known.kernels] == ["proj_16"]


def test_an_artifact_for_another_tvm_ffi(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builds, "version", lambda _: "0.0.1")
    made.edit(artifact, lambda m: m["abi"].update(tvm_ffi="0.9"))
    verdict = told(artifact).verdict
    assert (verdict.runs, verdict.what) == (False, "the artifact needs apache-tvm-ffi 0.9, 0.0.1 is installed")
    assert verdict.mend == "pip install apache-tvm-ffi==0.9"


def call(kernel: str, op: str, layer: int | None, *values: str) -> dict[str, Any]:
    return {"kernel": kernel, "op": op, "layer": layer, "where": "d:1", "values": list(values)}


CALLS = {
    "prefill": [call("e", "embed", None), *(call("p", "proj", n) for n in (0, 1, 2, 3)), call("m", "moe", 3)],
    "decode": [
        call("e", "embed", None), *(call("p", "proj", n) for n in (0, 1, 3, 4)), call("p", "proj", 1),
        call("m", "moe", 3),
    ],
    "draft": [call("p", "proj", 9)],
    "sample": [],
}  # fmt: skip


def test_kernels_and_layers(artifact: Path) -> None:
    def change(m: dict[str, Any]) -> None:
        m["builds"][0]["calls"] = CALLS
        m["entry_points"]["draft"] = m["entry_points"]["decode"]

    made.edit(artifact, change)
    known = told(artifact)
    assert known.layers == (
        LayerKind("dense", (0,)), LayerKind("dense 2", (1,)), LayerKind("dense 3", (2,)), LayerKind("MoE", (3,)),
        LayerKind("dense 4", (4,)), LayerKind("draft", (9,)),
    )  # fmt: skip
    p = next(k for k in known.kernels if k.symbol == "p")
    assert p.op == "proj" and p.calls == {"prefill": 4, "decode": 5, "draft": 1}
    assert p.kinds == {"dense": 2, "dense 2": 3, "dense 3": 1, "MoE": 2, "dense 4": 1, "draft": 1}
    assert known.entry_points["decode"].kernel_calls == 7 and known.entry_points["sample"].kernel_calls == 0
    assert known.entry_points["prefill"].inputs[-1] == "out_rows: i32[r]"


def test_the_kernels_of_a_node_end_with_the_one_that_makes_its_values(artifact: Path) -> None:
    data = json.loads(json.dumps(DATA))
    side = data["graphs"]["decode"]
    side["after"] = side["before"]
    store(artifact, json.dumps(data).encode())
    calls = [
        call("e", "embed", None, "0"), call("a", "x", 0, ""), call("b", "x", 0, "1"), call("c", "y", 0, "2.0", "2.1"),
        call("a", "x", 1, ""), call("b", "x", 1, "3"), call("c", "y", 1, "4.0", "4.1"),
    ]  # fmt: skip
    made.edit(artifact, lambda m: m["builds"][0]["calls"].update(decode=calls))
    _, drawing = inspect_artifact(artifact)
    assert drawing is not None and drawing.kernels == {"decode": {0: [["e"]], 1: [["a", "b"], ["c"]]}}


def leaves(kind: Any, prefix: str = "") -> set[str]:
    """Paths of all fields of a dataclass, with those of dataclasses in them; lists and objects are passed through."""
    found = set()
    hints = get_type_hints(kind)
    for field in fields(kind):
        hint = hints[field.name]
        inner = [t for t in (hint, *get_args(hint)) if is_dataclass(t)]
        found.add(f"{prefix}{field.name}")
        for part in inner:
            found |= leaves(part, f"{prefix}{field.name}.")
    return found


def test_the_json_is_as_documented(artifact: Path) -> None:
    """Each field of --json is in docs/inspect.md, and the page names no other."""
    documented = set(re.findall(r"^\| `([\w.]+)` \|", PAGE.read_text(), re.MULTILINE))
    assert documented == leaves(Facts)
    assert set(told(artifact).to_json()) == {name for name in documented if "." not in name}
    json.dumps(told(artifact, bandwidth=1e9).to_json(), allow_nan=False)


@pytest.mark.parametrize("field", ["weights_bytes", "cache_bytes_per_token", "active_bytes_per_token"])
def test_sizes_that_cannot_be(field: str, artifact: Path) -> None:
    made.edit(artifact, lambda m: m["memory"].update({field: 10**400}))
    with pytest.raises(DeepZigError) as caught:
        told(artifact)
    where = artifact / "manifest.json"
    what = f"the manifest's memory.{field} is larger than {2**53 - 1}"
    want = f"{what}\n  at: {where}\n  fix: compile the model again"
    assert str(caught.value) == want


def test_model_fields_of_any_kind(artifact: Path) -> None:
    odd = {"a": {"b": [1]}, "c": 1e-300, "d": [1, "x"], "e": None, "f": [[1]]}
    made.edit(artifact, lambda m: m["model"].update(odd))
    model = told(artifact).model
    assert (model["a"], model["c"], model["d"], model["e"], model["f"]) == (
        "{'b': [1]}", 1e-300, [1, "x"], None, "[[1]]"
    )  # fmt: skip


def test_the_mask_of_features_counts(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "this_machine", cpu_features.this_machine)
    monkeypatch.setenv(cpu_features.MASK, "sse4.2")
    assert told(artifact).verdict.what == "this CPU lacks avx2, fma, which the artifact needs"


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "0.98 KiB"), (1536, "1.50 KiB"), (10 << 20, "10.0 MiB"), (1 << 30, "1.00 GiB"),
     (671 << 30, "671 GiB"), (5 << 50, "5120 TiB"), (1023 << 20, "1.00 GiB")],
)  # fmt: skip
def test_bytes_as_text(number: int, text: str) -> None:
    assert size(number) == text


@pytest.mark.parametrize(
    ("number", "text"), [(7, "7"), (999, "999"), (999.6, "1.00 K"), (37_552_000_000, "37.6 B"), (2e12, "2.00 T")]
)
def test_counts_as_text(number: float, text: str) -> None:
    assert count(number) == text


@pytest.mark.parametrize(
    ("text", "number"),
    [("16GiB", 16 << 30), ("16 gib", 16 << 30), ("1.5TB", 15 * 10**11), ("800MB", 800_000_000), ("4096", 4096),
     ("2kb", 2000), ("1B", 1), ("16G", None), ("GiB", None), ("-1GiB", None), ("1e3", None), ("", None),
     ("nan", None)],
)  # fmt: skip
def test_bytes_from_text(text: str, number: int | None) -> None:
    assert parse_size(text) == number


@pytest.mark.parametrize(("numbers", "text"), [((), ""), ((4,), "4"), ((0, 1, 2, 5), "0-2, 5"), ((1, 3, 4), "1, 3-4")])
def test_ranges(numbers: tuple[int, ...], text: str) -> None:
    assert ranges(numbers) == text
