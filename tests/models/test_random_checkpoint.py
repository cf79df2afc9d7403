"""Checkpoints with random weights: the same by seed, whole, and readable by others."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

from deepzig.compiler.driver import fuse
from deepzig.compiler.options import Options
from deepzig.models import read_config
from deepzig.models.presets import PRESETS
from deepzig.models.random_checkpoint import BOS, EOS, write
from deepzig.models.tensors import one_by_one, tensors

SMALL = {
    **PRESETS["tiny"], "vocab_size": 400, "hidden_size": 72, "intermediate_size": 90, "moe_intermediate_size": 34,
    "num_hidden_layers": 2, "num_attention_heads": 3, "num_key_value_heads": 3, "attention_bias": True,
}  # fmt: skip


def hashes(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("random") / "checkpoint"
    write(path, SMALL, seed=3, dtype="f32")
    return path


def test_the_seed_decides(folder: Path, tmp_path: Path) -> None:
    write(tmp_path / "same", SMALL, seed=3, dtype="f32")
    write(tmp_path / "other", SMALL, seed=4, dtype="f32")
    same, other = hashes(tmp_path / "same"), hashes(tmp_path / "other")
    assert same == hashes(folder)
    assert {name for name in same if same[name] != other[name]} == {"model.safetensors"}


def test_transformers_loads_every_tensor(folder: Path) -> None:
    model, info = transformers.DeepseekV3ForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    stored = load_file(folder / "model.safetensors")
    name = "model.layers.1.self_attn.q_b_proj.weight"
    assert torch.equal(dict(model.named_parameters())[name], stored[name])
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    text = "def f(x): return x  # 12345 ü"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text
    assert (tokenizer.bos_token, tokenizer.eos_token) == (BOS, EOS)


def test_it_is_what_the_compiler_wants(folder: Path) -> None:
    config = fuse(folder, Options())[0].config
    assert config == read_config(folder)
    assert config.eos_token_ids == (1,)
    shapes = {name: tuple(x.shape) for name, x in load_file(folder / "model.safetensors").items()}
    assert shapes == dict(one_by_one(tensors(config)))


def test_weights_are_spread_so_that_each_shows(folder: Path) -> None:
    stored = load_file(folder / "model.safetensors")
    matrix = stored["model.layers.0.mlp.down_proj.weight"].numpy()
    assert np.std(matrix) == pytest.approx(90**-0.5, rel=0.05)
    assert stored["model.norm.weight"].mean().item() == pytest.approx(1, abs=0.05)
    assert stored["model.layers.0.self_attn.o_proj.bias"].std().item() == pytest.approx(0.3, rel=0.3)


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
def test_shards_hold_what_one_file_holds(dtype: str, tmp_path: Path) -> None:
    write(tmp_path / "one", SMALL, seed=5, dtype=dtype)
    write(tmp_path / "many", SMALL, seed=5, dtype=dtype, shard=40_000)
    files = sorted((tmp_path / "many").glob("*.safetensors"))
    assert len(files) > 3
    weight_map = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())["weight_map"]
    whole, parts = load_file(tmp_path / "one" / "model.safetensors"), {}
    for file in files:
        part = load_file(file)
        assert {weight_map[name] for name in part} == {file.name}
        parts |= part
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    kind = {"bf16": torch.bfloat16, "f16": torch.float16}[dtype]
    assert {x.dtype for name, x in whole.items() if not name.endswith("e_score_correction_bias")} == {kind}
    fuse(tmp_path / "many", Options())


def test_bf16_is_f32_rounded_to_nearest_even(tmp_path: Path) -> None:
    for dtype in ("f32", "bf16"):
        write(tmp_path / dtype, SMALL, seed=6, dtype=dtype)
    exact, rounded = (load_file(tmp_path / d / "model.safetensors") for d in ("f32", "bf16"))
    name = "model.embed_tokens.weight"
    assert torch.equal(exact[name].bfloat16(), rounded[name])


def test_command(tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-m", "deepzig.models.random_checkpoint", "out", "--preset", "tiny"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "wrote out: tiny, random weights\n"
    assert read_config(tmp_path / "out").hidden_size == 256
