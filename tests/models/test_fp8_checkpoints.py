"""`--quant fp8`: codes and scales of checkpoints are kept bit for bit where they can be, other weights rounded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from deepzig.artifacts.reader import open_artifact
from deepzig.compiler.driver import compile_model, fuse
from deepzig.compiler.options import Options
from deepzig.compiler.weights import WeightSource
from deepzig.errors import DeepZigError
from deepzig.ir.fp8 import FP8, SIDE, quantize_fp8, values_fp8
from deepzig.models.checkpoint import Checkpoint
from deepzig.runtime import load
from deepzig.runtime.verify import check, read_vectors, replay

from . import quantised
from .folders import DATA, Array, checkpoint, config, random_weights, stacked, write
from .quantised import fp8_config
from .test_storage import DOWN, EXPERT, FORMATS, SIZES, WEIGHTS, nan_code, put

KEPT = ("fp8", "fp8 by powers of two", "fp8 with bf16 scales", "fp8 by row", "fp8 by tensor")
"""Formats whose numbers are e4m3 codes with a scale that at least 128 columns share."""


def matrices(stored: dict[str, Array]) -> list[str]:
    """Names of the quantised matrices."""
    return [name for name, x in stored.items() if x.dtype == quantised.E4M3]


@pytest.mark.parametrize("name", FORMATS)
def test_which_formats_are_kept(name: str, tmp_path: Path) -> None:
    settings, make = FORMATS[name]
    stored, floats = make()
    opened = checkpoint(write(tmp_path, stored, {**DATA, **SIZES, **settings}))
    for matrix in set(floats) - set(matrices(stored)):
        assert opened.fp8(matrix) is None
    for matrix in matrices(stored):
        found = opened.fp8(matrix)
        narrow = name == "fp8 by other blocks" and floats[matrix].shape[1] <= 24
        assert (found is not None) == (name in KEPT or narrow)
        if found is not None:
            rows, columns = stored[matrix].shape
            assert np.array_equal(values_fp8(found, columns), floats[matrix])
            assert np.array_equal(found["codes"].reshape(rows, -1)[:, :columns], stored[matrix].view(np.uint8))


@pytest.mark.parametrize("inner", [128, 37])
def test_fused_experts(inner: int, tmp_path: Path) -> None:
    """gate and up are halves of one stored stack, also where a block has rows of both."""
    sizes = {**SIZES, "moe_intermediate_size": inner}
    whole = stacked(random_weights(config(**sizes), 63))
    names = [name for name in whole if "experts." in name and whole[name].ndim == 3]
    for name in names:
        parts = [quantised.fp8({name: matrix})[0] for matrix in whole[name]]
        for key in parts[0]:
            whole[key] = np.stack([part[key] for part in parts])
    opened = checkpoint(write(tmp_path, whole, {**DATA, **sizes, **fp8_config()}))
    for kind, at in (("gate", slice(inner)), ("up", slice(inner, None)), ("down", slice(None))):
        name = f"model.layers.1.mlp.experts.{kind}_proj.weight"
        key = f"model.layers.1.mlp.experts.{'down_proj' if kind == 'down' else 'gate_up_proj'}"
        for e, piece in enumerate(opened.pieces(name)):
            found = opened.fp8(name, e)
            assert found is not None and np.array_equal(values_fp8(found, piece.shape[1]), piece)
            codes = found["codes"].reshape(len(piece), -1)[:, : piece.shape[1]]
            assert np.array_equal(codes, whole[key][e].view(np.uint8)[at])


def test_a_compiled_checkpoint_is_kept_bit_for_bit(tmp_path: Path) -> None:
    """Matrices that are multiplied together too; what is no fp8 in the artifact is read as floats."""
    stored, _ = quantised.fp8(WEIGHTS)
    folder = write(tmp_path / "checkpoint", stored, {**DATA, **SIZES, **fp8_config()})
    source, module = fuse(folder, Options(quant="fp8"))
    weights, seen = WeightSource(module, source.checkpoint), 0
    for value in (v for v in module.params if v.type.dtype == FP8):
        for e, piece in enumerate(weights.pieces(value)):
            prefix, _, kind = value.name.partition(".experts.")
            name = f"{prefix}.experts.{e}.{kind}" if len(value.shape) == 3 else value.name
            codes, scales = stored[name].view(np.uint8), stored[f"{name}_scale_inv"]
            assert np.array_equal(piece["codes"].reshape(len(piece), -1)[:, : codes.shape[1]], codes)
            assert np.array_equal(piece["scale"], np.repeat(scales, SIDE, 0)[: len(piece)])
            seen += 1
    assert seen == len(matrices(stored)) - sum("kv_b_proj" in name for name in matrices(stored))
    merged = [node for node in module.weights if node.op.name == "concat" and len(node.output.shape) == 2]
    assert {node.output.type.dtype for node in merged} == {FP8}
    for node in merged:
        assert np.array_equal(weights.whole(node.output), np.concatenate([weights.whole(v) for v in node.inputs if v]))
    compile_model(folder, tmp_path / "out", Options(quant="fp8", dtype="f32"))
    artifact = open_artifact(tmp_path / "out")
    check(artifact, replay(artifact, read_vectors(artifact)))
    with load(tmp_path / "out") as model:
        assert np.isfinite(model.logits([5, 7, 11])).all()


def test_other_weights_are_rounded(tmp_path: Path) -> None:
    folder = write(tmp_path, WEIGHTS, {**DATA, **SIZES})
    source, module = fuse(folder, Options(quant="fp8"))
    weights = WeightSource(module, source.checkpoint)
    (value,) = (v for v in module.params if v.name == DOWN)
    assert value.type.dtype == FP8 and np.array_equal(weights.whole(value), quantize_fp8(WEIGHTS[DOWN]))
    assert np.array_equal(weights.piece(value, 130), quantize_fp8(WEIGHTS[DOWN])[130])
    (stack,) = (v for v in module.params if v.name.endswith("layers.1.mlp.experts.up_proj.weight"))
    assert np.array_equal(weights.piece(stack, 4), quantize_fp8(WEIGHTS[EXPERT]))


@pytest.mark.parametrize("damage", ["code", "scale"])
def test_what_is_not_finite_is_refused(damage: str, tmp_path: Path) -> None:
    stored = dict(quantised.fp8(WEIGHTS)[0])
    if damage == "code":
        put(DOWN, nan_code)(stored)
    else:
        put(f"{DOWN}_scale_inv", lambda x: x * np.float32(1e38) * np.float32(100))(stored)
    opened: Checkpoint = checkpoint(write(tmp_path, stored, {**DATA, **SIZES, **fp8_config()}))
    with pytest.raises(DeepZigError) as caught:
        opened.fp8(DOWN)
    where = f"{tmp_path / 'model.safetensors'}, tensor {DOWN}"
    fix = "download or write the checkpoint again"
    assert str(caught.value) == f"a weight is not a finite number\n  at: {where}\n  fix: {fix}"
