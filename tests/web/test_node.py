"""The reference model for WebAssembly, run by node: against the same model on this machine's own code."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deepzig.artifacts.reader import open_artifact, read_manifest
from deepzig.artifacts.writer import ArtifactWriter
from deepzig.compiler.driver import compile_model
from deepzig.compiler.options import Options
from deepzig.compiler.trace import Bounds
from deepzig.errors import DeepZigError
from deepzig.models import random_checkpoint
from deepzig.models.reference.corpus import heldout
from deepzig.runtime import Model, load
from deepzig.runtime.node import NodeMachine
from deepzig.runtime.tensors import DeviceTensor
from deepzig.runtime.verify import check, read_vectors, replay
from deepzig.tensorfile import read_header

from ..runtime.conftest import CONFIG
from .conftest import REFERENCE

TOLERANCE = 2e-5
"""f32, norm-relative."""


def machine(model: Model) -> NodeMachine:
    assert isinstance(model.backend, NodeMachine)
    return model.backend


def rows(model: Model, count: int, seed: int, begin: int = 0) -> dict[str, Any]:
    """The inputs of a call with random tokens of one sequence, on scattered pages; all rows are wanted."""
    rng = np.random.default_rng(seed)
    return {
        "tokens": rng.integers(0, 512, count).astype(np.int32), "seq": np.zeros(count, np.int32),
        "pos": np.arange(begin, begin + count, dtype=np.int32),
        "block_table": rng.permutation(model.pool.count)[None, :9].astype(np.int32),
        "out_rows": np.arange(count, dtype=np.int32),
    }  # fmt: skip


def test_logits_are_those_of_native_code(model: Model, native: Model) -> None:
    """Whole chunks, rests of them, and single rows behind them: one lowering, two executors."""
    tokens = np.random.default_rng(4).integers(0, 512, 300).tolist()
    got, want = model.logits(tokens), native.logits(tokens)
    assert got.shape == (300, 512) and np.linalg.norm(got - want) <= TOLERANCE * np.linalg.norm(want)
    for count, begin in ((1, 0), (7, 1), (40, 8), (2, 530)):
        given = rows(model, count, 5, begin)
        entry = "prefill" if count > 32 else "decode"
        for ours, theirs in zip(*(m.backend.call(entry, given) for m in (model, native)), strict=True):
            ours, theirs = np.asarray(ours), np.asarray(theirs)
            assert ours.shape == theirs.shape
            assert np.linalg.norm(ours - theirs) <= TOLERANCE * np.linalg.norm(theirs)


def test_weights_in_pieces(artifact: Path, model: Model, tmp_path: Path) -> None:
    """Larger tensors than a file has lie in several, and are whole in memory."""
    shards = sorted(cut_again(artifact, tmp_path / "cut", 1 << 20).glob("*.safetensors"))
    assert len(shards) > 20 and max(shard.stat().st_size for shard in shards) < (1 << 20) + 8192
    given = rows(model, 40, 12)
    with load(tmp_path / "cut", cache_tokens=2000, full_check=True) as other:
        for ours, theirs in zip(*(m.backend.call("prefill", given) for m in (other, model)), strict=True):
            assert np.array_equal(np.asarray(ours), np.asarray(theirs))


def cut_again(artifact: Path, out: Path, shard_bytes: int) -> Path:
    """The same artifact with smaller files of weights."""
    manifest = read_manifest(artifact)
    data = {}
    for shard in artifact.glob("*.safetensors"):
        content = shard.read_bytes()
        data |= {e.name: content[e.begin : e.end] for e in read_header(shard).values()}
    with ArtifactWriter(out, shard_bytes=shard_bytes, cut=True) as writer:
        for name in manifest.files:
            if not name.endswith(".safetensors"):
                writer.add_file(name, artifact / name)
        with writer.weights() as file:
            for spec in manifest.weights:
                file.declare(spec.name, spec.dtype, tuple(map(int, spec.shape)))
            for spec in manifest.weights:
                file.write(spec.name, [np.frombuffer(data[spec.name], np.uint8)])
        writer.finish(manifest)
    return out


def same_answers(model: Model, native: Model, questions: list[Any]) -> None:
    for question in questions:
        asked = [{"role": "user", "content": question.question}]
        ours, theirs = (m.generate(asked, max_tokens=96) for m in (model, native))
        assert ours.choices == theirs.choices


def test_answers_are_those_of_native_code(model: Model, native: Model) -> None:
    same_answers(model, native, heldout(None, 1)[:6])


@pytest.mark.slow
def test_100_answers_are_those_of_native_code(model: Model, native: Model) -> None:
    questions = heldout(None, 8)[:100]
    assert len(questions) == 100
    same_answers(model, native, questions)


def test_sampling_draws_the_same_tokens(model: Model, native: Model) -> None:
    options = {"temperature": 0.8, "top_p": 0.95, "top_k": 50, "min_p": 0.01, "seed": 11, "n": 2, "max_tokens": 30}
    ours, theirs = (m.generate("Hello", **options) for m in (model, native))
    assert ours.choices == theirs.choices and ours.choices[0] != ours.choices[1]
    edited = {"repetition_penalty": 1.3, "logit_bias": {5: 3}, "logprobs": True, "max_tokens": 8}
    ours, theirs = (m.generate("Hello", **edited) for m in (model, native))
    assert ours.token_ids == theirs.token_ids and ours.logprobs and theirs.logprobs
    assert [a.logprob for a in ours.logprobs] == pytest.approx([b.logprob for b in theirs.logprobs], abs=1e-4)


def test_speculation(model: Model) -> None:
    asked = [{"role": "user", "content": "What is 12 plus 30?"}]
    plain, ahead = (model.generate(asked, max_tokens=64, speculate=k) for k in (0, 2))
    assert ahead.choices == plain.choices and 0 < ahead.accepted_tokens <= ahead.guessed_tokens


def test_outputs_stay_until_they_are_dropped(model: Model) -> None:
    """They are the caller's: later calls change nothing, and node forgets what nobody has."""
    first, hidden = model.backend.call("decode", rows(model, 3, 1))
    assert isinstance(first, DeviceTensor) and isinstance(hidden, DeviceTensor)
    before = np.asarray(first).copy()
    head = first[:2]
    number = hidden.tensor.number
    del first, hidden
    model.backend.call("decode", rows(model, 3, 2))
    assert np.array_equal(np.asarray(head), before[:2])
    with pytest.raises(DeepZigError) as caught:
        machine(model)._ask("read", tensor=number)
    assert caught.value.what == f"there is no tensor {number}"


@pytest.mark.parametrize("tensors", [True, False])
def test_watching(model: Model, tensors: bool) -> None:
    """Kernels in the order of the manifest, with the tensors that they are called with."""
    told: list[tuple[str, int, bool]] = []
    given = rows(model, 2, 3)
    want = np.asarray(model.backend.call("decode", given)[0])
    with machine(model).watch(lambda kernel, shown, before: told.append((kernel, len(shown), before)), tensors):
        got = np.asarray(model.backend.call("decode", given)[0])
    assert np.array_equal(got, want)
    kernels = [call.kernel for call in machine(model).artifact.build.calls["decode"]]
    assert [kernel for kernel, _, before in told if before] == kernels == [k for k, _, before in told if not before]
    assert all((count > 1) == tensors for _, count, _ in told)


def test_too_many_rows(model: Model) -> None:
    with pytest.raises(DeepZigError) as caught:
        model.backend.call("decode", rows(model, 513, 6))
    assert str(caught.value) == (
        "513 is too large for n\n  at: decode, input tokens\n  fix: give at most 512 in a call"
    )


def test_verify(artifact: Path, model: Model, cli: Any, tmp_path: Path) -> None:
    code, out, _ = cli("verify", artifact)
    assert code == 0 and out.startswith("ok: build wasm, all files, 4 of 4 layers, 96 values of prefill, decode, draft")
    damaged = tmp_path / "damaged"
    shutil.copytree(artifact, damaged)
    shard = damaged / "weights-00001.safetensors"
    data = bytearray(shard.read_bytes())
    data[-300_000] ^= 1
    shard.write_bytes(data)
    code, out, err = cli("verify", damaged)
    assert (code, out) == (2, "") and err == (
        "error: the file was changed: its SHA-256 differs from the manifest's\n"
        f"  at: {shard}\n  fix: copy or compile the artifact again\n"
    )


def test_verify_names_a_wrong_kernel(artifact: Path, model: Model, tmp_path: Path) -> None:
    """In the plan two arguments of the same shape are exchanged: what is multiplied, and what is added."""
    wrong = tmp_path / "wrong"
    shutil.copytree(artifact, wrong)
    opened = open_artifact(wrong)
    part = wrong / str(opened.build.plan)
    plan = json.loads(part.read_text())
    call = next(c for c in plan["entry_points"]["draft"]["calls"] if c["kernel"] == "proj_k128_n128_f32_res")
    reads = call["arguments"]
    reads[0], reads[2] = reads[2], reads[0]
    part.write_text(json.dumps(plan, separators=(",", ":")) + "\n")  # of the same size
    verdict = replay(opened, read_vectors(opened))
    with pytest.raises(DeepZigError, match=r"proj differs by .* in draft"):
        check(opened, verdict)


def test_inspect(artifact: Path, model: Model, cli: Any) -> None:
    """Weights are copied to node, and 4 GiB are all that there is."""
    code, out, _ = cli("inspect", artifact)
    assert code == 0 and "runs here: yes, build wasm" in out
    assert "copied to node" in out and "with 1 threads" in out and "fits in 4.00 GiB: " in out


def test_packed(artifact: Path, model: Model, cli: Any, tmp_path: Path) -> None:
    """Weights are read where they lie in the file."""
    assert cli("pack", artifact, "-o", tmp_path / "one.deepzig")[0] == 0
    code, out, _ = cli("run", tmp_path / "one.deepzig", "Hello", "--max-tokens", 9)
    assert code == 0 and out == cli("run", artifact, "Hello", "--max-tokens", 9)[1] != ""


def test_chat(artifact: Path, model: Model, cli: Any) -> None:
    code, out, _ = cli("chat", artifact, stdin="Reverse the word lamp.\n/exit\n")
    assert code == 0 and out == "pmal\n"


def refusal(artifact: Path, **options: Any) -> str:
    with pytest.raises(DeepZigError) as caught:
        load(artifact, **options)
    return str(caught.value)


def test_without_node(artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    hint = "fix: install Node.js 18 or later, or compile the model for this machine"
    what = "the artifact is for WebAssembly, and there is no node to run it"
    assert refusal(artifact) == f"{what}\n  at: {artifact}\n  {hint}"
    node = tmp_path / "node"
    node.write_text("#!/bin/sh\necho v12.22.9\n")
    node.chmod(node.stat().st_mode | stat.S_IXUSR)
    what = "the artifact is for WebAssembly, and node v12.22.9 is too old"
    assert refusal(artifact) == f"{what}\n  at: {artifact}\n  {hint}"


def test_threads(artifact: Path) -> None:
    assert refusal(artifact, threads=2) == (
        f"code for WebAssembly runs on one thread, not on 2\n  at: {artifact}\n  fix: leave the number of threads out"
    )


def test_code_that_is_none(artifact: Path, model: Model, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(artifact, broken)
    opened = open_artifact(broken)
    code = broken / opened.build.code
    code.write_bytes(code.read_bytes()[:8] + code.read_bytes()[28:] + bytes(20))
    with pytest.raises(DeepZigError) as caught:
        NodeMachine(opened, 4)
    assert caught.value.what.startswith("the code can't be loaded: WebAssembly.instantiate(): ")
    assert caught.value.where == f"{broken}/code/wasm.wasm"
    assert caught.value.hint == "update this browser or node: WebAssembly with SIMD is needed"


def test_the_process_ends(artifact: Path, model: Model) -> None:
    with load(artifact, cache_tokens=100) as other:
        os.kill(machine(other)._process.pid, 9)
        with pytest.raises(DeepZigError) as caught:
            other.generate("Hello", max_tokens=2)
        assert str(caught.value) == (
            f"node ended: exit status -9\n  at: {artifact}\n  fix: load the model with fewer cache_tokens"
        )
    with pytest.raises(DeepZigError) as caught:
        other.generate("Hello", max_tokens=2)
    assert str(caught.value) == f"the model is closed\n  at: {artifact}\n  fix: load it again"


def test_no_room_for_the_cache(artifact: Path, model: Model) -> None:
    message = refusal(artifact, cache_tokens=1 << 23)
    what, where, hint = message.split("\n")
    assert re.fullmatch(r"there is no room for \d+ bytes more after \d+", what)
    assert where == "  at: the memory of WebAssembly"
    assert hint == "  fix: load with a smaller cache, or compile with --quant"


def test_an_interrupted_call(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while node works: its answer comes later, and is not taken for that to the next request."""
    node = machine(model)
    given, stdout = rows(model, 5, 8), node._process.stdout
    assert stdout is not None
    want = np.asarray(model.backend.call("decode", given)[0])

    class Interrupted:
        def readline(self) -> bytes:
            raise KeyboardInterrupt

    node._process.stdout = Interrupted()  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        model.backend.call("decode", rows(model, 9, 9))
    node._process.stdout = stdout
    assert np.array_equal(np.asarray(model.backend.call("decode", given)[0]), want)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"dtype": "bf16"}, {"dtype": "f16"}, {"dtype": "f32", "quant": "q8", "cache": "q8"}, {"quant": "q4"},
        {"quant": "fp8"},
    ],
    ids=lambda o: "-".join(o.values()),
)  # fmt: skip
def test_every_element_type(options: dict[str, str], model: Model, tmp_path: Path) -> None:
    """The self-check vectors of the interpreter, and an answer."""
    compile_model(REFERENCE, tmp_path / "out", Options(target="wasm", **options))  # type: ignore[arg-type]
    opened = open_artifact(tmp_path / "out", full=True)
    check(opened, replay(opened, read_vectors(opened)))
    with load(tmp_path / "out", cache_tokens=500) as other:
        asked = [{"role": "user", "content": "Which is larger, 41 or 14?"}]
        assert other.generate(asked, max_tokens=64).text == "41"


@pytest.mark.slow
def test_a_model_that_is_not_fused(model: Model, tmp_path: Path) -> None:
    """Plain kernels too: any number of rewrites gives a model that runs."""
    config = {**CONFIG, "max_position_embeddings": 256}
    random_checkpoint.write(tmp_path / "checkpoint", config)
    bounds = Bounds(chunk=64, decode_rows=8, rows=64, batch=2, page_size=16)
    for limit in (0, 5):
        options = Options(target="wasm", dtype="f32", bounds=bounds, fuse_limit=limit, self_check="full")
        compile_model(tmp_path / "checkpoint", tmp_path / f"{limit}", options)
        opened = open_artifact(tmp_path / f"{limit}")
        check(opened, replay(opened, read_vectors(opened)))
