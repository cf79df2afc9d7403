"""What a checkpoint holds is the same however it is stored."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from deepzig.compiler.trace import Bounds, trace
from deepzig.models.checkpoint import Checkpoint
from deepzig.models.config import ModelConfig

from .folders import DATA, STORED, Array, checkpoint, config, random_weights, save, stacked, write

Store = Callable[[Path, Mapping[str, Array]], Path]


def fused_in_shards(folder: Path, weights: Mapping[str, Array]) -> Path:
    return write(folder, stacked(weights), shards=4)


def renamed(folder: Path, weights: Mapping[str, Array]) -> Path:
    """Each stack under the name that the model has for it."""
    whole = stacked(weights)
    for name in [n for n in whole if n.endswith("gate_up_proj")]:
        prefix, both = name.removesuffix("gate_up_proj"), whole.pop(name)
        half = both.shape[1] // 2
        whole[f"{prefix}gate_proj.weight"] = np.ascontiguousarray(both[:, :half])
        whole[f"{prefix}up_proj.weight"] = np.ascontiguousarray(both[:, half:])
        whole[f"{prefix}down_proj.weight"] = whole.pop(f"{prefix}down_proj")
    return write(folder, whole)


STORES: dict[str, Store] = {
    "one file": lambda folder, weights: write(folder, weights),
    "shards": lambda folder, weights: write(folder, weights, shards=5),
    "stacked": lambda folder, weights: write(folder, stacked(weights)),
    "stacked in shards": fused_in_shards,
    "stacked and renamed": renamed,
}


def wanted(c: ModelConfig) -> dict[str, tuple[int, ...]]:
    module = trace(c, "f32", Bounds())
    return {v.name: tuple(map(int, v.shape)) for v in module.params if v.name not in module.constants}


def values(opened: Checkpoint, name: str, shape: tuple[int, ...]) -> Array:
    """A tensor as its bits."""
    pieces = list(opened.pieces(name)) if len(shape) == 3 else [opened.read(name)]
    whole = np.stack(pieces) if len(shape) == 3 else pieces[0]
    return whole.view(f"u{whole.itemsize}")


def expected(weights: Mapping[str, Array], name: str) -> Array:
    if name in weights:
        return weights[name].view(f"u{weights[name].itemsize}")
    prefix, _, kind = name.rpartition(".experts.")
    whole = np.stack([weights[f"{prefix}.experts.{e}.{kind}"] for e in range(DATA["n_routed_experts"])])
    return whole.view(f"u{whole.itemsize}")


@pytest.mark.parametrize("dtype", STORED)
@pytest.mark.parametrize("store", STORES)
def test_every_way_to_store(store: str, dtype: str, tmp_path: Path) -> None:
    weights = random_weights(config(), 11, dtype)
    opened = checkpoint(STORES[store](tmp_path / "model", weights))
    names = wanted(config())
    opened.check(names)
    for name, shape in names.items():
        assert opened.dtype(name) == ("f32" if name.endswith("e_score_correction_bias") else dtype)
        assert np.array_equal(values(opened, name, shape), expected(weights, name)), name


@pytest.mark.parametrize("n_routed_experts", [2, 11])
def test_experts_are_in_numeric_order(n_routed_experts: int, tmp_path: Path) -> None:
    c = config(n_routed_experts=n_routed_experts, n_group=1, topk_group=1, num_experts_per_tok=1)
    weights = random_weights(c, 12)
    backwards = dict(reversed(weights.items()))
    opened = checkpoint(write(tmp_path, backwards, shards=3))
    opened.check(wanted(c))
    for e, piece in enumerate(opened.pieces("model.layers.1.mlp.experts.down_proj.weight")):
        assert np.array_equal(piece, weights[f"model.layers.1.mlp.experts.{e}.down_proj.weight"])


def test_types_may_differ_from_tensor_to_tensor(tmp_path: Path) -> None:
    """bf16 matrices, f32 norms, f16 up-projections: only the experts of one stack must agree."""
    weights = random_weights(config(), 13, "bf16")
    for name in weights:
        if "norm" in name:
            weights[name] = weights[name].astype(np.float32)
        if "up_proj" in name:
            weights[name] = weights[name].astype(np.float16)
    opened = checkpoint(write(tmp_path, weights))
    opened.check(wanted(config()))
    kinds = ("model.norm.weight", "lm_head.weight", "model.layers.1.mlp.experts.up_proj.weight")
    assert [opened.dtype(name) for name in kinds] == ["f32", "bf16", "f16"]
    for name, shape in wanted(config()).items():
        assert np.array_equal(values(opened, name, shape), expected(weights, name)), name


def test_tensors_that_are_let_be(tmp_path: Path) -> None:
    """Rotary buffers of older exports, a tied output head, and layers beyond the last (multi-token prediction)."""
    weights = random_weights(config(), 14)
    rng = np.random.default_rng(14)
    for name in ("model.layers.0.self_attn.rotary_emb.inv_freq", "model.layers.2.anything.weight"):
        weights[name] = rng.standard_normal((5, 3)).astype(np.float32)
    opened = checkpoint(write(tmp_path, weights))
    names = wanted(config(tie_word_embeddings=True))
    assert "lm_head.weight" not in names
    opened.check(names, layers=2)


def test_a_single_file_comes_before_an_index(tmp_path: Path) -> None:
    """As in transformers."""
    old, new = random_weights(config(), 15), random_weights(config(), 16)
    write(tmp_path, old, shards=2)
    save(tmp_path / "model.safetensors", new)
    assert np.array_equal(checkpoint(tmp_path).read("lm_head.weight"), new["lm_head.weight"])


def test_names_are_those_of_the_files(tmp_path: Path) -> None:
    weights = random_weights(config(), 17)
    write(tmp_path, weights, shards=3)
    assert sorted(checkpoint(tmp_path).names()) == sorted(weights)
    listed = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    assert sorted(listed) == sorted(weights)
