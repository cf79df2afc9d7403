"""`deepzig verify`: a healthy artifact passes, a wrong kernel is named by its op and its layer."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deepzig.artifacts.cpu_features import this_machine
from deepzig.artifacts.machines import MACHINES
from deepzig.artifacts.manifest import Build
from deepzig.artifacts.reader import open_artifact
from deepzig.compiler.driver import compile_model
from deepzig.compiler.options import Options
from deepzig.ir import Node
from deepzig.models import random_checkpoint
from deepzig.runtime import verify
from deepzig.runtime.verify import HALVED, check, floats_allowed, read_vectors, replay
from deepzig.targets.base import Variant
from deepzig.targets.cpu import amx, lowering, methods
from deepzig.targets.cpu.cache import widened
from deepzig.targets.cpu.features import CpuTarget
from deepzig.targets.cpu.product import Method, tile

from . import conftest
from .conftest import CONFIG

BOUNDS = replace(conftest.BOUNDS, chunk=256, rows=288)
"""A chunk that is long enough for un-absorbed attention."""

LAYERS = {**CONFIG, "num_hidden_layers": 4, "first_k_dense_replace": 2, "num_nextn_predict_layers": 1}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verify") / "checkpoint"
    random_checkpoint.write(folder, LAYERS)
    return folder


@pytest.fixture(scope="module")
def healthy(checkpoint: Path) -> Path:
    compile_model(checkpoint, checkpoint.parent / "healthy", Options(bounds=BOUNDS, dtype="f32"))
    return checkpoint.parent / "healthy"


def test_a_healthy_artifact(cli: Any, healthy: Path) -> None:
    code, out, err = cli("verify", healthy)
    assert (code, err) == (0, "")
    match = re.fullmatch(
        r"ok: build native, all files, 4 of 4 layers, \d+ values of prefill, decode, draft, sample; "
        r"the worst is \S+ off \(\w+\), allowed is 4e-05\n",
        out,
    )
    assert match, out
    code, out, _ = cli("verify", healthy, "--json", "--threads", 1)
    report = json.loads(out)
    assert code == 0 and report["ok"] and report["layers"] == [0, 1, 2, 3, 4]
    assert report["worst"]["distance"] < report["worst"]["allowed"] / 4 and report["wrong"] == []
    assert report["worst"].keys() == {"entry", "layer", "op", "where", "kernels", "value", "distance", "allowed"}


def test_every_kernel_with_a_value_is_compared(healthy: Path) -> None:
    artifact = open_artifact(healthy)
    verdict = replay(artifact, read_vectors(artifact))
    named = {
        (entry, name) for entry, calls in artifact.build.calls.items() for call in calls for name in call.values if name
    }
    assert {(f.entry, f.value) for f in verdict.findings} == named
    assert {f.call.layer for f in verdict.findings} == {None, 0, 1, 2, 3, 4}


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
@pytest.mark.parametrize("seed", [3, pytest.param(4, marks=pytest.mark.slow), pytest.param(5, marks=pytest.mark.slow)])
def test_no_false_alarm(seed: int, dtype: str, tmp_path: Path) -> None:
    """Random sizes, routers and page sizes: errors stay far below what is allowed, with 2-byte types as with f32."""
    rng = np.random.default_rng([seed, len(dtype), ord(dtype[0])])
    heads = int(rng.integers(1, 5))
    config = {
        **CONFIG, "hidden_size": int(rng.integers(20, 90)), "num_attention_heads": heads, "num_key_value_heads": heads,
        "q_lora_rank": [None, 24][seed % 2], "kv_lora_rank": int(rng.integers(9, 60)),
        "v_head_dim": int(rng.integers(5, 40)), "moe_intermediate_size": int(rng.integers(7, 50)),
        "vocab_size": int(rng.integers(300, 5000)),
        "num_hidden_layers": 3, "first_k_dense_replace": int(rng.integers(0, 3)),
    }  # fmt: skip
    random_checkpoint.write(tmp_path / "checkpoint", config)
    bounds = replace(BOUNDS, page_size=int(rng.choice([16, 48, 64])))
    compile_model(tmp_path / "checkpoint", tmp_path / "out", Options(bounds=bounds, dtype=dtype))
    artifact = open_artifact(tmp_path / "out")
    verdict = replay(artifact, read_vectors(artifact))
    check(artifact, verdict)
    assert verdict.worst.distance < verdict.worst.allowed / 8
    assert max(f.distance for f in verdict.findings if f.call.op != "latent_write") < 2.5e-6


def changed(**attrs: float) -> Callable[[Node], Node]:
    return lambda node: replace(node, attrs={**node.attrs, **attrs})


def swapped(a: int, b: int) -> Callable[[Node], Node]:
    def swap(node: Node) -> Node:
        inputs = list(node.inputs)
        inputs[a], inputs[b] = inputs[b], inputs[a]
        return replace(node, inputs=tuple(inputs))

    return swap


WRONG: list[tuple[str, int | None, str, Callable[[Node], Node], str]] = [
    ("mla_decode", 2, "bf16", changed(scale=0.3), "decode"),
    ("mla_prefill", 3, "f32", changed(scale=2.5), "prefill"),
    ("moe", 3, "bf16", changed(shared=0), "prefill"),
    ("moe", 2, "f32", swapped(3, 4), "prefill"),
    ("router", 2, "bf16", changed(scaling=2.5003), "prefill"),
    ("latent_write", 1, "f32", changed(eps=1e-4), "prefill"),
    ("gated_proj", 0, "f32", changed(eps=1e-5), "prefill"),
    ("rms_norm", None, "bf16", changed(eps=1e-5), "prefill"),
    ("mla_decode", 4, "f32", changed(scale=2.5), "draft"),
]
"""Op, layer, type, mistake, and the entry point that shows it first."""


@pytest.mark.parametrize(
    ("op", "layer", "dtype", "spoil", "entry"),
    [pytest.param(*w, id=f"{w[0]}-{w[1]}", marks=[] if i % 2 else [pytest.mark.slow]) for i, w in enumerate(WRONG)],
)  # fmt: skip
def test_a_wrong_kernel_is_named(
    op: str, layer: int | None, dtype: str, spoil: Callable[[Node], Node], entry: str, checkpoint: Path, tmp_path: Path,
    cli: Any, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """One op of one layer is built with a mistake, and no other is blamed; the recorder knows nothing of kernels."""
    (right,) = lowering.LOWERINGS[op]

    def wrong(emitter: Any, node: Node, cpu: Any) -> Any:
        return right.lower(emitter, spoil(node) if node.layer == layer else node, cpu)

    monkeypatch.setitem(lowering.LOWERINGS, op, (Variant(wrong),))  # type: ignore[arg-type]
    compile_model(checkpoint, tmp_path / "out", Options(bounds=BOUNDS, dtype=dtype))
    code, out, err = cli("verify", tmp_path / "out")
    place = "" if layer is None else f"layer {layer}, "
    lines = err.splitlines()
    assert (code, out) == (2, "")
    what = rf"error: {place}{op} differs by \S+ in {entry}, allowed is \de-0\d(; \d more values differ)?"
    assert re.fullmatch(what, lines[0]), err
    where = rf"  at: {tmp_path / 'out'}, code/native.so, kernel [\w, ]+ \(deepzig\.models\.definition:\d+\)"
    assert re.fullmatch(where, lines[1]), err
    assert lines[2:] == ["  fix: the kernel is wrong on this machine; compile with another --target and report it"]
    code, out, _ = cli("verify", tmp_path / "out", "--json")
    wrong = json.loads(out)["wrong"]
    assert code == 2 and {(w["op"], w["layer"]) for w in wrong} == {(op, layer)}
    if op == "moe":
        assert re.fullmatch(r"moe_h\w+", " ".join(wrong[0]["kernels"]))


def test_rows_that_are_rounded_to_bf16(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a machine does that has products of bf16 only is no fault on it, and one on every other."""

    def encode(x: Any, rows: Any, size: int) -> Any:
        bits = amx.rounded(x, rows, size)
        return replace(bits, read=lambda row: lambda k: widened(bits.read(row)(k), "bf16", 1))

    here = this_machine().features
    vectors = replace(CpuTarget(here).vectors, matrices="of this test")
    methods_ = {("bf16", vectors.matrices): lambda vectors: Method.by_tiles(vectors.tile, tile, encode=encode)}
    with monkeypatch.context() as patched:
        patched.setattr(CpuTarget, "vectors", vectors)
        patched.setattr(methods, "METHODS", methods_)
        compile_model(checkpoint, tmp_path / "out", Options(bounds=BOUNDS, dtype="bf16"))
    artifact = open_artifact(tmp_path / "out")
    wrong = replay(artifact, read_vectors(artifact)).wrong
    assert {f.call.op for f in wrong} == {"linear", "proj", "gated_proj", "mla_decode", "moe"}
    assert min(f.distance for f in wrong) > 1e-4 and max(f.distance for f in wrong) < HALVED / 2
    monkeypatch.setattr(verify, "BF16_ROWS", here)
    assert replay(artifact, read_vectors(artifact)).wrong == []


@pytest.mark.parametrize(
    ("device", "features", "dtype", "quant", "allowed"),
    [
        ("cpu", "", "bf16", None, 4e-5), ("cpu", "amx-bf16", "bf16", None, 2e-2),
        ("cpu", "amx-bf16", "f16", None, 4e-5), ("cpu", "", "bf16", "q8", 1e-2),
        ("cpu", "avx512bf16", "bf16", "q8", 3e-2),
        ("metal", "", "bf16", None, 4e-5), ("metal", "", "f16", "q4", 1e-2),
        ("cuda", "sm_80", "f32", None, 4e-5), ("cuda", "sm_80", "bf16", None, 2e-2), ("cuda", "", "f16", None, 2.5e-3),
        ("cuda", "", "f16", "fp8", 2e-2),
    ],
)  # fmt: skip
def test_what_is_allowed(device: str, features: str, dtype: str, quant: str | None, allowed: float) -> None:
    """It hangs on what rows are rounded to, by this machine's instructions or by a device's."""
    build = Build("x", "", "", frozenset(features.split()), "", "", {}, device)
    assert floats_allowed(build, {"dtype": dtype, "quant": quant}) == pytest.approx(allowed, rel=1e-12)


def copied(artifact: Path, to: Path, part: str, change: Callable[[bytearray], None]) -> Path:
    """A copy with one part changed and its hash made to match."""
    shutil.copytree(artifact, to)
    data = bytearray((to / part).read_bytes())
    change(data)
    (to / part).write_bytes(data)
    manifest = json.loads((to / "manifest.json").read_text())
    manifest["files"][part] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (to / "manifest.json").write_text(json.dumps(manifest))
    return to


def test_a_changed_weight_is_found_by_its_hash_and_by_its_op(cli: Any, healthy: Path, tmp_path: Path) -> None:
    def spoil(data: bytearray) -> None:
        """The matrix of layer 1's first projection loses its first 64 words."""
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        base = 8 + int.from_bytes(data[:8], "little")
        name = next(n for n in header if ".1.self_attn.o_proj" in n)
        begin = base + header[name]["data_offsets"][0]
        data[begin : begin + 256] = bytes(256)

    part = "weights-00001.safetensors"
    changed = copied(healthy, tmp_path / "changed", part, spoil)
    code, _, err = cli("verify", changed)
    assert code == 2 and err.startswith("error: layer 1, proj differs by ")
    shutil.copyfile(healthy / "manifest.json", changed / "manifest.json")
    assert cli("verify", changed)[1:] == (
        "",
        "error: the file was changed: its SHA-256 differs from the manifest's\n"
        f"  at: {changed / part}\n  fix: copy or compile the artifact again\n",
    )


NOISE = {"seed": 1, "shape": [3, 5], "bits": 24, "scale": 1.0}
DRAW = {"seed": 1, "shape": [3, 5], "experts": 4}
HOSTILE: list[tuple[str, Callable[[Any], Any], str]] = [
    ("not an object", lambda v: [], "the self-check vectors can't be understood"),
    ("no calls", lambda v: {**v, "calls": None}, "the self-check vectors can't be understood"),
    ("deep", lambda v: {**v, "layers": [[[[]]]]}, "the self-check vectors can't be understood"),
    ("huge noise", lambda v: edit(v, "forced", {"4": {**NOISE, "shape": [1 << 40]}}), "the self-check vectors can't"),
    ("noise of 99 bits", lambda v: edit(v, "forced", {"4": {**NOISE, "bits": 99}}), "the self-check vectors can't"),
    ("noise of a shape", lambda v: edit(v, "forced", flat(v)), "the self-check vectors have another shape for"),
    ("more choices than experts", lambda v: edit(v, "forced", {"4": DRAW}), "the self-check vectors can't"),
    ("a page too far", lambda v: {**v, "pages": 1}, "block_table has "),
    ("another entry", lambda v: edit(v, "entry", "nothing"), "the self-check vectors are of another model"),
    ("an input too many", lambda v: given(v, x=[1]), "the self-check vectors are of another model"),
    ("a token too large", lambda v: given(v, tokens=[999] * len(v["calls"][0]["inputs"]["pos"])), "tokens has 999"),
    ("text", lambda v: given(v, tokens=["x"]), "the self-check vectors can't be understood"),
]  # fmt: skip


def given(vectors: Any, **inputs: Any) -> Any:
    return edit(vectors, "inputs", {**vectors["calls"][0]["inputs"], **inputs})


def flat(vectors: Any) -> Any:
    return dict.fromkeys(vectors["calls"][0]["forced"], NOISE)


def edit(vectors: Any, field: str, value: Any) -> Any:
    vectors["calls"][0][field] = value
    return vectors


@pytest.mark.parametrize(("change", "what"), [h[1:] for h in HOSTILE], ids=[h[0] for h in HOSTILE])
def test_vectors_that_do_not_fit(
    change: Callable[[Any], Any], what: str, healthy: Path, cli: Any, tmp_path: Path
) -> None:  # fmt: skip
    def rewrite(data: bytearray) -> None:
        data[:] = json.dumps(change(json.loads(data))).encode()

    code, _, err = cli("verify", copied(healthy, tmp_path / "hostile", "selfcheck.json", rewrite))
    assert code == 2 and err.startswith(f"error: {what}") and err.count("\n") == 3, err


def test_a_value_that_is_never_computed(cli: Any, healthy: Path, tmp_path: Path) -> None:
    """A map of calls that names no values would have nothing to compare."""
    shutil.copytree(healthy, tmp_path / "mute")
    manifest = json.loads((healthy / "manifest.json").read_text())
    (call,) = manifest["builds"][0]["calls"]["sample"]
    (value,), call["values"] = call["values"], [""]
    (tmp_path / "mute" / "manifest.json").write_text(json.dumps(manifest))
    assert cli("verify", tmp_path / "mute") == (
        2,
        "",
        f"error: the code does not compute the recorded value {value}\n"
        f"  at: {tmp_path / 'mute'}, sample\n  fix: compile the model again\n",
    )


def test_all_builds(cli: Any, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that this machine can run, one after another; a wrong one does not keep the others from being checked."""
    here = this_machine()
    basic = next(name for name, kind in reversed(MACHINES.items()) if kind.platform == here.platform)
    (right,) = lowering.LOWERINGS["moe"]

    def wrong(emitter: Any, node: Node, cpu: Any) -> Any:
        spoilt = cpu.name == basic and node.layer == 2
        return right.lower(emitter, replace(node, attrs={**node.attrs, "shared": 0}) if spoilt else node, cpu)

    monkeypatch.setitem(lowering.LOWERINGS, "moe", (Variant(wrong),))  # type: ignore[arg-type]
    target = f"native+{basic}"
    compile_model(checkpoint, tmp_path / "out", Options(bounds=BOUNDS, dtype="f32", target=target))
    assert cli("verify", tmp_path / "out")[:2][0] == 0
    code, out, err = cli("verify", tmp_path / "out", "--all-builds")
    assert code == 2 and re.fullmatch(r"ok: build native, .*\n", out)
    assert err.startswith("error: layer 2, moe differs by ") and f"code/{basic}." in err
    code, out, _ = cli("verify", tmp_path / "out", "--all-builds", "--json")
    assert [(r["build"], r["ok"]) for r in map(json.loads, out.splitlines())] == [("native", True), (basic, False)]


@pytest.mark.parametrize("limit", [0, pytest.param(9, marks=pytest.mark.slow)])
def test_ops_that_are_not_fused(limit: int, cli: Any, checkpoint: Path, tmp_path: Path) -> None:
    """Plain kernels are checked too; what other passes recorded can't be told from the checkpoint."""
    out = tmp_path / "out"
    compile_model(checkpoint, out, Options(bounds=BOUNDS, dtype="bf16", fuse_limit=limit, debug_route=True))
    code, told, err = cli("verify", out)
    assert (code, err) == (0, "") and told.startswith("ok: ")
    assert cli("verify", out, "--against", checkpoint) == (
        2,
        "",
        "error: the artifact was compiled with other passes, so its values can't be told from the checkpoint\n"
        f"  at: {checkpoint}\n  fix: compile the model again, with this DeepZig and without --fuse-limit\n",
    )


def test_without_vectors(cli: Any, checkpoint: Path, tmp_path: Path) -> None:
    compile_model(checkpoint, tmp_path / "out", Options(bounds=BOUNDS, self_check="none"))
    assert cli("verify", tmp_path / "out") == (
        2,
        "",
        "error: the artifact has no self-check vectors\n"
        f"  at: {tmp_path / 'out'}\n  fix: compile the model without --self-check none\n",
    )


def test_against_the_checkpoint(cli: Any, healthy: Path, checkpoint: Path, tmp_path: Path) -> None:
    code, out, _ = cli("verify", healthy, "--against", checkpoint)
    assert code == 0 and out.startswith("ok: ")
    random_checkpoint.write(tmp_path / "other", LAYERS, seed=99)
    code, _, err = cli("verify", healthy, "--against", tmp_path / "other")
    assert code == 2
    what = "the checkpoint gives other values than the artifact recorded, first in prefill: embed"
    assert err.startswith(f"error: {what}")
    random_checkpoint.write(tmp_path / "larger", {**LAYERS, "hidden_size": 80})
    code, _, err = cli("verify", healthy, "--against", tmp_path / "larger")
    assert (code, err.splitlines()[0]) == (2, "error: the artifact has hidden_size 72, the checkpoint 80")
