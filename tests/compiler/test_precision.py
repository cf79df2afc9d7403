"""`--quant`: which matrices it means, and models that are quantised as a whole."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from deepzig.artifacts.reader import open_artifact
from deepzig.compiler.driver import compile_model, fuse, read_model
from deepzig.compiler.options import Options
from deepzig.compiler.precision import parse_quant
from deepzig.compiler.trace import Bounds
from deepzig.errors import DeepZigError
from deepzig.ir.quantize import FORMATS
from deepzig.models import random_checkpoint
from deepzig.runtime import load
from deepzig.runtime.verify import check, read_vectors, replay

from ..runtime.conftest import BOUNDS, CONFIG

LAYER = "model.layers.3."
UN_ABSORBED = replace(BOUNDS, chunk=256, rows=288)
"""A chunk that is long enough for attention in head space."""
WHOLE_BLOCKS = {"qk_nope_head_dim": 128, "v_head_dim": 256, "kv_lora_rank": 128}
"""Sizes with which heads consist of whole blocks of 8-bit floats."""


@pytest.mark.parametrize(
    ("text", "name", "want"),
    [
        (None, f"{LAYER}mlp.down_proj.weight", None),
        ("q8", f"{LAYER}mlp.down_proj.weight", "q8"),
        ("q8", "model.embed_tokens.weight", None),
        ("q4", f"{LAYER}self_attn.kv_b_proj.weight", "q8"),
        ("fp8", f"{LAYER}self_attn.kv_b_proj.weight", "fp8"),
        ("q8", f"{LAYER}self_attn.kv_b_proj.weight", "q8"),
        ("q4,kv_b_proj=q4", f"{LAYER}self_attn.kv_b_proj.weight", "q4"),
        ("q8,self_attn=float", f"{LAYER}self_attn.kv_b_proj.weight", None),
        ("q4,kv_b_proj=fp8", f"{LAYER}self_attn.kv_b_proj.weight", "fp8"),
        ("fp8,kv_b_proj=float", f"{LAYER}self_attn.kv_b_proj.weight", None),
        ("fp8,kv_b_proj=q8", f"{LAYER}self_attn.kv_b_proj.weight", "q8"),
        ("q4", f"{LAYER}eh_proj.weight", None),
        ("q4", "lm_head.weight", "q8"),
        ("q4,lm_head=q4", "lm_head.weight", "q4"),
        ("q4,lm_head=float", "lm_head.weight", None),
        ("q4,experts.down_proj=q8", f"{LAYER}mlp.experts.down_proj.weight", "q8"),
        ("q4,experts.down_proj=q8", f"{LAYER}mlp.shared_experts.down_proj.weight", "q4"),
        ("q4, experts.down_proj=q8", f"{LAYER}mlp.down_proj.weight", "q4"),
        ("q8,experts.up_proj=q4", f"{LAYER}mlp.experts.gate_proj.weight", "q4"),
        ("q8,self_attn=float", f"{LAYER}self_attn.o_proj.weight", None),
        ("q8,layers.3=q4,o_proj=q8", f"{LAYER}self_attn.o_proj.weight", "q8"),
        ("q8,proj=q4", f"{LAYER}self_attn.o_proj.weight", "q8"),
        ("fp8", f"{LAYER}mlp.experts.down_proj.weight", "fp8"),
        ("fp8", "lm_head.weight", "q8"),
        ("fp8,lm_head=fp8", "lm_head.weight", "fp8"),
        ("fp8,experts=q4", f"{LAYER}mlp.experts.up_proj.weight", "q4"),
    ],
)
def test_rules(text: str | None, name: str, want: str | None) -> None:
    assert parse_quant(text, FORMATS)(name) == want
    for allowed in ((), ("fp8",), ("q8", "q4")):  # a format that the target lacks there leaves the matrix as it is
        assert parse_quant(text, allowed)(name) == (None if "kv_b_proj" in name and want not in allowed else want)


def test_the_target_says_what_attention_multiplies_by(tmp_path: Path) -> None:
    random_checkpoint.write(tmp_path, CONFIG)
    for target, want in (("llvm", "q8"), ("x86-64-v2+amx", "q8"), ("wasm", "q8"), ("webgpu", "f32"), ("cuda", "f32")):
        _, module = fuse(tmp_path, Options(target, "f32", "q4"))
        assert {v.type.dtype for v in module.params if "kv_b_proj" in v.name} == {want}
        assert "q4" in {v.type.dtype for v in module.params}
    _, module = read_model(tmp_path, Options(dtype="f32", quant="q4"), formats=())
    assert {v.type.dtype for v in module.params if "kv_b_proj" in v.name} == {"f32"}


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("q5", "no quantisation is called 'q5'"),
        ("", "no quantisation is called ''"),
        ("q8,o_proj", "'o_proj' is not a rule"),
        ("q8,=q4", "'=q4' is not a rule"),
        ("q8,o_proj=int4", "no quantisation is called 'int4'"),
    ],
)
def test_what_is_refused(text: str, what: str) -> None:
    with pytest.raises(DeepZigError) as caught:
        parse_quant(text)
    hint = "give one of q8, q4, fp8, then rules such as experts.down_proj=q8 or o_proj=float"
    assert str(caught.value) == f"{what}\n  at: --quant\n  fix: {hint}"


@pytest.mark.parametrize(
    ("quant", "more", "bounds", "headwise"),
    [
        ("q8", {}, UN_ABSORBED, "columns-q8"),
        ("q4,experts.down_proj=q8,q_a_proj=float", {"n_shared_experts": 2}, BOUNDS, "columns-q8"),
        ("q8,shared_experts=q4,kv_b_proj=float", {}, BOUNDS, "columns"),
        ("q4,experts=float", {}, BOUNDS, "columns-q8"),
        ("fp8,lm_head=float", {"n_shared_experts": 2}, BOUNDS, "columns"),
        ("fp8,experts.down_proj=q4,o_proj=q8", {}, BOUNDS, "columns"),
        ("q4,kv_b_proj=fp8", WHOLE_BLOCKS, BOUNDS, "columns-fp8"),
        ("q8,kv_b_proj=q4", {"kv_lora_rank": 72}, UN_ABSORBED, "columns-q4"),
    ],
)
def test_whole_models(quant: str, more: dict[str, int], bounds: Bounds, headwise: str, tmp_path: Path) -> None:
    """Kernels agree with the ops' meaning; a row's bits depend neither on threads nor on how a text is cut."""
    config = {**CONFIG, "num_hidden_layers": 2, "moe_intermediate_size": 41, **more}
    random_checkpoint.write(tmp_path / "checkpoint", config)
    compile_model(tmp_path / "checkpoint", tmp_path / "out", Options(bounds=bounds, dtype="f32", quant=quant))
    artifact = open_artifact(tmp_path / "out")
    assert {w.name.partition("@")[2] for w in artifact.manifest.weights if "kv_b_proj" in w.name} == {headwise}
    check(artifact, replay(artifact, read_vectors(artifact)))
    tokens = np.random.default_rng(2).integers(0, 611, 90).tolist()
    digests = set()
    for threads in (1, 2):
        with load(tmp_path / "out", threads=threads) as model:
            logits = model.logits(tokens)
            digests.add(hashlib.sha256(logits.tobytes()).hexdigest())
            assert np.array_equal(model.logits(tokens[:33]), logits[:33])
    assert len(digests) == 1 and np.isfinite(logits).all()


def test_quantised_artifacts_are_small_and_near(tmp_path: Path) -> None:
    config = {**CONFIG, "hidden_size": 256, "num_hidden_layers": 2, "moe_intermediate_size": 128}
    random_checkpoint.write(tmp_path / "checkpoint", config)
    logits, sizes = {}, {}
    for quant in (None, "q8", "q4", "fp8"):
        out = tmp_path / str(quant)
        report = compile_model(tmp_path / "checkpoint", out, Options(bounds=BOUNDS, quant=quant, self_check="none"))
        with load(out) as model:
            logits[quant], sizes[quant] = model.logits([5, 77, 230, 9]), report.weights_bytes
    assert sizes["q4"] < min(sizes["q8"], sizes["fp8"]) and max(sizes["q8"], sizes["fp8"]) < sizes[None]
    distance = {q: np.linalg.norm(logits[q] - logits[None]) / np.linalg.norm(logits[None]) for q in ("q8", "fp8", "q4")}
    assert 0 < distance["q8"] < 0.05 and distance["q8"] < distance["fp8"] < distance["q4"] < 0.5, distance
