"""Multi-token prediction: read and checked where it is, left out where the checkpoint has none of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deepzig.compiler.driver import fuse
from deepzig.compiler.options import Options
from deepzig.errors import DeepZigError
from deepzig.models.tensors import mtp_tensors, one_by_one, tensors

from . import quantised
from .folders import DATA, Array, checkpoint, config, random_weights, stacked, write

ONE = config(num_nextn_predict_layers=1)
WEIGHTS = random_weights(ONE, 71)
MTP = [name for name in WEIGHTS if name.startswith("model.layers.2.")]
COPIES = ("model.layers.2.embed_tokens.weight", "model.layers.2.shared_head.head.weight")
OWN = [name for name in MTP if name not in COPIES]
EXPERT = "model.layers.2.mlp.experts.5.gate_proj.weight"


def folder(path: Path, weights: dict[str, Array], count: int) -> Path:
    return write(path, weights, {**DATA, "num_nextn_predict_layers": count})


def test_names_and_shapes_are_those_of_deepseek() -> None:
    """The list of model.layers.61 in DeepSeek-V3's index, at this size."""
    assert dict(one_by_one(mtp_tensors(ONE))).keys() == set(MTP)
    p, own = "model.layers.2.", dict(mtp_tensors(ONE))
    assert own[p + "enorm.weight"] == own[p + "hnorm.weight"] == own[p + "shared_head.norm.weight"] == (40,)
    assert own[p + "eh_proj.weight"] == (40, 80)
    assert own[p + "embed_tokens.weight"] == own[p + "shared_head.head.weight"] == (67, 40)
    layer = {name.replace(".1.", ".2.", 1): s for name, s in tensors(ONE) if name.startswith("model.layers.1.")}
    assert layer.items() <= own.items() and len(own) == len(layer) + 6
    assert own[p + "mlp.experts.down_proj.weight"] == (6, 40, 18)
    assert not list(mtp_tensors(config()))


@pytest.mark.parametrize("store", [dict, stacked], ids=["by expert", "fused"])
def test_every_tensor_can_be_read(store: Callable[[dict[str, Array]], dict[str, Array]], tmp_path: Path) -> None:
    opened = fuse(folder(tmp_path, store(WEIGHTS), 1), Options())[0].checkpoint
    for name, shape in mtp_tensors(ONE):
        if len(shape) == 3:
            prefix, _, kind = name.rpartition(".experts.")
            want = np.stack([WEIGHTS[f"{prefix}.experts.{e}.{kind}"] for e in range(shape[0])])
            assert np.array_equal(np.stack(list(opened.pieces(name))), want)
        else:
            assert np.array_equal(opened.read(name), WEIGHTS[name])


def test_quantised(tmp_path: Path) -> None:
    stored, floats = quantised.fp8(WEIGHTS, (16, 16))
    settings = quantised.fp8_config(weight_block_size=[16, 16])
    write(tmp_path, stored, {**DATA, **settings, "num_nextn_predict_layers": 1})
    opened = fuse(tmp_path, Options())[0].checkpoint
    name = "model.layers.2.self_attn.o_proj.weight"
    assert np.array_equal(opened.read(name), floats[name])


def test_two_modules(tmp_path: Path) -> None:
    two = config(num_nextn_predict_layers=2)
    weights = random_weights(two, 72)
    fuse(folder(tmp_path / "good", weights, 2), Options())
    del weights["model.layers.3.hnorm.weight"]
    with pytest.raises(DeepZigError) as error:
        fuse(folder(tmp_path / "bad", weights, 2), Options())
    assert error.value.where == f"{tmp_path / 'bad'}, tensor model.layers.3.hnorm.weight"


@pytest.mark.parametrize("count", [1, 2])
def test_a_checkpoint_without_any_is_taken(count: int, tmp_path: Path) -> None:
    """As transformers saves it: the config speaks of modules that are not there."""
    rest = {name: x for name, x in WEIGHTS.items() if name not in MTP}
    source, _ = fuse(folder(tmp_path, rest, count), Options())
    assert not any(name.startswith("model.layers.2.") for name in source.checkpoint.names())


@pytest.mark.parametrize("keep", [slice(None), slice(3)])
def test_tensors_that_the_config_does_not_know_are_let_be(keep: slice, tmp_path: Path) -> None:
    weights = {name: x for name, x in WEIGHTS.items() if name not in MTP[keep.stop :] or keep.stop is None}
    fuse(folder(tmp_path, weights, 0), Options())


def test_copies_of_embedding_and_head_may_be_left_out(tmp_path: Path) -> None:
    weights = {name: x for name, x in WEIGHTS.items() if name not in COPIES}
    _, module = fuse(folder(tmp_path, weights, 1), Options())
    assert "draft" in [graph.name for graph in module.graphs]
    assert not {v.name for v in module.params} & {*COPIES}


def test_modules_beyond_those_of_the_config_are_let_be(tmp_path: Path) -> None:
    weights = random_weights(config(num_nextn_predict_layers=2), 73)
    fuse(folder(tmp_path, weights, 1), Options())


@pytest.mark.parametrize(
    ("name", "change", "what", "hint"),
    [
        *((name, None, "a tensor is missing", "download or write the checkpoint again") for name in OWN),
        (
            "model.layers.2.eh_proj.weight",
            lambda x: x[:, :40],
            "the shape is [40, 40], not [40, 80]",
            "is config.json of another model?",
        ),
        (
            "model.layers.2.enorm.weight",
            lambda x: x[:7],
            "the shape is [7], not [40]",
            "is config.json of another model?",
        ),
        (EXPERT, lambda x: x.T, "the shape is [40, 18], not [18, 40]", "is config.json of another model?"),
        (
            EXPERT,
            lambda x: x.astype(np.int8),
            "weights of type I8 can't be read",
            "convert the checkpoint to one of F32, F16, BF16",
        ),
    ],
)
def test_damaged(name: str, change: Any, what: str, hint: str, tmp_path: Path) -> None:
    weights = dict(WEIGHTS)
    if change is None:
        del weights[name]
    else:
        weights[name] = np.ascontiguousarray(change(weights[name]))
    with pytest.raises(DeepZigError) as error:
        fuse(folder(tmp_path, weights, 1), Options())
    file = tmp_path if change is None else tmp_path / "model.safetensors"
    assert str(error.value) == f"{what}\n  at: {file}, tensor {name}\n  fix: {hint}"


def test_a_tensor_too_many(tmp_path: Path) -> None:
    weights = {**WEIGHTS, "model.layers.2.gnorm.weight": WEIGHTS["model.norm.weight"]}
    with pytest.raises(DeepZigError) as error:
        fuse(folder(tmp_path, weights, 1), Options())
    assert error.value.what == "the model has no such tensor"
    assert error.value.where == f"{tmp_path / 'model.safetensors'}, tensor model.layers.2.gnorm.weight"


def test_buffers_of_older_exports(tmp_path: Path) -> None:
    weights = {**WEIGHTS, "model.layers.2.self_attn.rotary_emb.inv_freq": WEIGHTS["model.norm.weight"]}
    assert checkpoint(folder(tmp_path, weights, 1)).names()
    fuse(tmp_path, Options())
