"""The file holds the checkpoint's weights and sizes; and llama.cpp, where it is installed, computes the same model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import pytest
import to_gguf

from deepzig.compiler.driver import compile_model
from deepzig.compiler.options import Options
from deepzig.errors import DeepZigError
from deepzig.models.presets import PRESETS, YARN
from deepzig.models.random_checkpoint import write
from deepzig.models.source import Source, open_source
from deepzig.models.tensors import tensors
from deepzig.runtime import load

Array = npt.NDArray[Any]

V3: dict[str, Any] = {
    **PRESETS["tiny"], "vocab_size": 611, "hidden_size": 96, "intermediate_size": 160, "moe_intermediate_size": 64,
    "num_hidden_layers": 3, "num_attention_heads": 3, "num_key_value_heads": 3, "n_routed_experts": 6, "n_group": 3,
    "topk_group": 2, "num_experts_per_tok": 3, "n_shared_experts": 2, "max_position_embeddings": 1024,
    "rope_scaling": {
        **YARN, "factor": 12, "mscale": 0.7, "mscale_all_dim": 0.7, "original_max_position_embeddings": 64,
    },
}  # fmt: skip
V2 = {
    **V3, "model_type": "deepseek_v2", "q_lora_rank": None, "num_hidden_layers": 27, "scoring_func": "softmax",
    "topk_method": "greedy", "norm_topk_prob": False, "routed_scaling_factor": 1.0,
}  # fmt: skip
MODELS = {"v3": V3, "v2": V2}
SMALLEST = {"Q8_0": 127.5, "Q4_0": 7.5}
"""Half a step of a block is its greatest value over this."""
LLAMA_CPP = {"v3": 1e-3, "v2": 4e-3}
"""Relative error of logits, of 3 and of 27 layers."""


def floats(source: Source, name: str) -> Array:
    x = source.checkpoint
    parts = list(x.pieces(name)) if "experts." in name and "shared" not in name else [x.read(name)]
    bits = np.stack(parts)
    return (bits.astype(np.uint32) << 16).view(np.float32) if x.dtype(name) == "bf16" else bits.astype(np.float32)


@pytest.fixture(scope="module", params=MODELS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp(request.param)
    write(made, MODELS[request.param], seed=3)
    return made


def test_floats_are_kept_and_sizes_too(folder: Path, tmp_path: Path) -> None:
    to_gguf.write(folder, tmp_path / "m.gguf", "BF16")
    ours, theirs = open_source(folder), open_source(tmp_path / "m.gguf")
    assert {**vars(theirs.config), "bos_token_id": 0, "eos_token_ids": (1,)} == vars(ours.config)
    assert theirs.checkpoint.dtype("model.layers.1.mlp.experts.up_proj.weight") == "bf16"
    for name, _ in tensors(ours.config):
        assert np.array_equal(floats(ours, name), floats(theirs, name)), name
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]


@pytest.mark.parametrize("kind", SMALLEST)
def test_blocks_are_near(folder: Path, tmp_path: Path, kind: str) -> None:
    to_gguf.write(folder, tmp_path / "m.gguf", kind)
    ours, theirs = open_source(folder), open_source(tmp_path / "m.gguf")
    kinds = {t.name: t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    assert kinds["blk.1.ffn_down_exps.weight"] == kinds["blk.1.attn_k_b.weight"] == kinds["output.weight"] == kind
    assert kinds["blk.1.ffn_gate_inp.weight"] == kinds["blk.1.attn_norm.weight"] == "F32"
    for name, _ in tensors(ours.config):
        a, b = floats(ours, name), floats(theirs, name)
        error, most = np.abs(a - b).max(), np.abs(a).max()
        matrix = "norm" not in name and ".gate.w" not in name and "bias" not in name
        assert 0 < error <= 1.1 * most / SMALLEST[kind] if matrix else error == 0, name


def test_models_that_llama_cpp_lacks_are_refused(tmp_path: Path) -> None:
    write(tmp_path, {**V2, "num_hidden_layers": 3})
    with pytest.raises(DeepZigError) as caught:
        to_gguf.write(tmp_path, tmp_path / "m.gguf", "F32")
    assert (
        str(caught.value)
        .splitlines()[0]
        .endswith("llama.cpp loads 26 or 27 layers without q_lora_rank, and no other number")
    )
    assert not list(tmp_path.glob("*.gguf*"))


@pytest.mark.slow
def test_llama_cpp_computes_the_same_logits(folder: Path, tmp_path: Path) -> None:
    """Both in f32, prompt and steps. llama.cpp takes SiLU from a table of f16: the tolerance grows with the layers."""
    llama = pytest.importorskip("llama_cpp")
    from llama_cpp_worker import LlamaCpp

    name = folder.name[:2]
    write(tmp_path / "f32", MODELS[name], seed=4, dtype="f32")
    to_gguf.write(tmp_path / "f32", tmp_path / "m.gguf", "F32")
    compile_model(tmp_path / "f32", tmp_path / "out", Options(dtype="f32"))
    tokens = np.random.default_rng(5).integers(0, 611, 83).tolist()
    with load(tmp_path / "out") as model:
        wanted = model.logits(tokens)
    for flash in (False, True):
        found = LlamaCpp(str(tmp_path / "m.gguf"), 2).logits(tokens, flash)
        error = np.linalg.norm(found - wanted, axis=-1) / np.linalg.norm(wanted, axis=-1)
        assert np.median(error) < LLAMA_CPP[name], llama.__version__
        assert np.mean(found.argmax(-1) == wanted.argmax(-1)) > 0.95
