"""Quantised checkpoints hold what their floats, computed apart, hold; damaged ones are refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from deepzig.compiler.driver import compile_model, fuse
from deepzig.compiler.options import Options
from deepzig.errors import DeepZigError
from deepzig.ir.fp8 import E4M3 as E4M3_VALUES
from deepzig.models.files import find_tensors
from deepzig.models.storage import E8M0 as E8M0_VALUES
from deepzig.models.storage import find_scheme, read_weights
from deepzig.models.tensors import tensors
from deepzig.runtime import load

from . import quantised
from .folders import DATA, Array, checkpoint, config, random_weights, save, stacked, write
from .quantised import E4M3, Quantised, compressed_config, fp8_config

SIZES = {"hidden_size": 137, "intermediate_size": 261, "kv_lora_rank": 130, "q_lora_rank": 33}
"""Several blocks of 128, the last one partial."""
WEIGHTS = random_weights(config(**SIZES), 61)
HALF = {name: x.astype(ml_dtypes.bfloat16) for name, x in WEIGHTS.items()}

Make = Callable[[], Quantised]
FORMATS: dict[str, tuple[dict[str, Any], Make]] = {
    "fp8": (fp8_config(), lambda: quantised.fp8(WEIGHTS)),
    "fp8 by powers of two": (fp8_config(scale_fmt="ue8m0"), lambda: quantised.fp8(HALF, scales="ue8m0")),
    "fp8 with bf16 scales": (fp8_config(), lambda: quantised.fp8(HALF, scales="bf16")),
    "fp8 by other blocks": (fp8_config(weight_block_size=[16, 24]), lambda: quantised.fp8(WEIGHTS, (16, 24))),
    "int4": (compressed_config(), lambda: quantised.packed(HALF)),
    "int4 with f32 scales": (compressed_config(), lambda: quantised.packed(WEIGHTS, scales="f32")),
    "int4 with f16 scales": (compressed_config(group_size=24), lambda: quantised.packed(WEIGHTS, 4, 24, "f16")),
    "int4 by row": (compressed_config(strategy="channel", group_size=None), lambda: quantised.packed(WEIGHTS, group=0)),
    "packed int8": (compressed_config(num_bits=8), lambda: quantised.packed(WEIGHTS, 8)),
    "int8 by row": (
        compressed_config("int-quantized", num_bits=8, strategy="channel"), lambda: quantised.by_row(WEIGHTS, np.int8),
    ),
    "fp8 by row": (
        compressed_config("float-quantized", num_bits=8, type="float", strategy="channel"),
        lambda: quantised.by_row(WEIGHTS, E4M3),
    ),
    "fp8 by tensor": (
        compressed_config("float-quantized", num_bits=8, type="float", strategy="tensor"),
        lambda: quantised.by_row(WEIGHTS, E4M3, per_tensor=True),
    ),
}  # fmt: skip


def values(folder: Path) -> dict[str, Array]:
    """Every tensor, f32."""
    opened = checkpoint(folder)
    found = {}
    for name, shape in tensors(config(**SIZES)):
        whole = np.stack(list(opened.pieces(name))) if len(shape) == 3 else opened.read(name)
        wide = (whole.astype(np.uint32) << 16).view(np.float32) if opened.dtype(name) == "bf16" else whole
        found[name] = wide.astype(np.float32)
    return found


@pytest.mark.parametrize("name", FORMATS)
def test_values_are_those_of_the_floats(name: str, tmp_path: Path) -> None:
    """Bit for bit; scales by the dozen, partial blocks, and stored in shards."""
    settings, make = FORMATS[name]
    stored, floats = make()
    assert len(stored) > len(floats)
    data = {**DATA, **SIZES}
    write(tmp_path / "stored", stored, {**data, **settings}, shards=3)
    write(tmp_path / "floats", floats, data)
    fuse(tmp_path / "stored", Options())
    got, want = values(tmp_path / "stored"), values(tmp_path / "floats")
    assert all(np.array_equal(got[key], want[key]) for key in want)
    opened = checkpoint(tmp_path / "stored")
    for key, whole in want.items():  # a row of a matrix, a matrix of a stack, a number of a vector
        last = len(whole) - 1
        wide = opened.piece(key, last)
        wide = (wide.astype(np.uint32) << 16).view(np.float32) if opened.dtype(key) == "bf16" else wide
        assert np.array_equal(wide, whole[last]), key
    assert any(np.abs(want[key] - WEIGHTS[key]).max() > 1e-4 for key in want if key in WEIGHTS)


def test_the_shapes_of_deepseek(tmp_path: Path) -> None:
    """kv_a_proj_with_mqa has 576 rows, so 5 rows of scales of which the last covers 64."""
    name = "model.layers.0.self_attn.kv_a_proj_with_mqa.weight"
    stored, floats = quantised.fp8({name: np.random.default_rng(62).standard_normal((576, 300)).astype(np.float32)})
    assert stored[f"{name}_scale_inv"].shape == (5, 3)
    save(tmp_path / "model.safetensors", stored)
    weights = read_weights(find_tensors(tmp_path), find_scheme(fp8_config(), "config.json"))
    assert list(weights) == [name] and weights[name].shape == (576, 300)
    assert np.array_equal(weights[name].read(()), floats[name])


def test_fused_experts(tmp_path: Path) -> None:
    """Codes and scales of a stack are read expert by expert; gate and up have their own rows of scales."""
    sizes = {**SIZES, "moe_intermediate_size": 128}
    weights = random_weights(config(**sizes), 63)
    stored, floats = quantised.fp8(weights)
    codes = stacked({n: x for n, x in stored.items() if not n.endswith("_scale_inv")})
    scales = {n.removesuffix("_scale_inv"): x for n, x in stored.items() if n.endswith("_scale_inv")}
    scales = {n: x for n, x in stacked(scales).items() if n.removesuffix("_scale_inv") in codes}
    whole = {**codes, **{f"{n}_scale_inv": x for n, x in scales.items()}}
    data = {**DATA, **sizes}
    write(tmp_path / "stored", whole, {**data, **fp8_config()})
    fuse(tmp_path / "stored", Options())
    opened = checkpoint(tmp_path / "stored")
    for kind in ("gate", "up", "down"):
        for e, piece in enumerate(opened.pieces(f"model.layers.1.mlp.experts.{kind}_proj.weight")):
            assert np.array_equal(piece, floats[f"model.layers.1.mlp.experts.{e}.{kind}_proj.weight"])


def test_every_code_of_e4m3_and_e8m0() -> None:
    codes = np.arange(256, dtype=np.uint8)
    assert np.array_equal(E4M3_VALUES, codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32), equal_nan=True)
    assert np.array_equal(E8M0_VALUES, codes.view(ml_dtypes.float8_e8m0fnu).astype(np.float32), equal_nan=True)
    assert np.signbit(E4M3_VALUES[128])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fp8", "fp8 by powers of two", "int4"])
def test_logits_are_equal(name: str, tmp_path: Path) -> None:
    settings, make = FORMATS[name]
    stored, floats = make()
    data = {**DATA, **SIZES}
    tokens = np.random.default_rng(64).integers(0, DATA["vocab_size"], 23).tolist()
    results = []
    for kind, weights, extra in (("stored", stored, settings), ("floats", floats, {})):
        write(tmp_path / kind, weights, {**data, **extra})
        compile_model(tmp_path / kind, tmp_path / f"{kind}.out", Options(dtype="f32"))
        with load(tmp_path / f"{kind}.out") as model:
            results.append(model.logits(tokens))
    assert np.array_equal(*results)


def test_plain_weights_are_read_as_ever_beside_a_config(tmp_path: Path) -> None:
    """A checkpoint that was de-quantised may keep its quantization_config."""
    write(tmp_path, WEIGHTS, {**DATA, **SIZES, **fp8_config()})
    fuse(tmp_path, Options())


DOWN = "model.layers.0.mlp.down_proj.weight"
EXPERT = "model.layers.1.mlp.experts.4.up_proj.weight"
AGAIN = "download or write the checkpoint again"
FLOATS = "convert the checkpoint to one of F32, F16, BF16"
BLOCKS = quantised.fp8(WEIGHTS)[0]
INTS = quantised.packed(HALF)[0]


def without(name: str) -> Callable[[dict[str, Array]], object]:
    return lambda w: w.pop(name)


def put(name: str, change: Callable[[Array], Any]) -> Callable[[dict[str, Array]], object]:
    return lambda w: w.update({name: np.ascontiguousarray(change(w[name]))})


def nan_code(codes: Array) -> Array:
    bits = codes.view(np.uint8).copy()
    bits[3, 5] = 0xFF
    return bits.view(E4M3)


def infinite(x: Array) -> Array:
    bits = x.view(np.uint16).copy()
    bits[-1, -1] = 0xFF80
    return bits.view(x.dtype)


DAMAGED: dict[str, tuple[dict[str, Array], Callable[[dict[str, Array]], object], str, str, str]] = {
    "no scales": (BLOCKS, without(f"{DOWN}_scale_inv"), "a tensor is missing", f"{DOWN}_scale_inv", AGAIN),
    "no scales of an expert": (
        BLOCKS,
        without(f"{EXPERT}_scale_inv"),
        "a tensor is missing",
        f"{EXPERT}_scale_inv",
        AGAIN,
    ),
    "scales without codes": (
        BLOCKS,
        without(DOWN),
        "a tensor is missing",
        DOWN,
        AGAIN,
    ),
    "a row of scales too few": (
        BLOCKS,
        put(f"{DOWN}_scale_inv", lambda x: x[:1]),
        "the scales are [1, 3], not [2, 3]",
        f"{DOWN}_scale_inv",
        AGAIN,
    ),
    "scales transposed": (
        BLOCKS,
        put(f"{DOWN}_scale_inv", lambda x: x.T),
        "the scales are [3, 2], not [2, 3]",
        f"{DOWN}_scale_inv",
        AGAIN,
    ),
    "flat scales": (
        BLOCKS,
        put(f"{DOWN}_scale_inv", lambda x: x.ravel()),
        "the scales are [6], not [2, 3]",
        f"{DOWN}_scale_inv",
        AGAIN,
    ),
    "scales of whole numbers": (
        BLOCKS,
        put(f"{DOWN}_scale_inv", lambda x: x.astype(np.int32)),
        "scales of type I32 can't be read",
        f"{DOWN}_scale_inv",
        "scales are of type F32, F16, BF16, F8_E8M0",
    ),
    "codes of another shape": (
        BLOCKS,
        put(EXPERT, lambda x: x[:, :129]),
        "the shape is [18, 129], not [18, 137]",
        EXPERT,
        "is config.json of another model?",
    ),
    "a norm in 8 bits": (
        BLOCKS,
        put("model.norm.weight", lambda x: x.astype(E4M3)),
        "weights of type F8_E4M3 can't be read",
        "model.norm.weight",
        FLOATS,
    ),
    "scales of a plain weight": (
        BLOCKS,
        put(DOWN, lambda x: x.astype(np.float32)),
        "the model has no such tensor",
        f"{DOWN}_scale_inv",
        "is config.json of another model?",
    ),
    "no packed scales": (INTS, without(f"{DOWN}_scale"), "a tensor is missing", f"{DOWN}_scale", AGAIN),
    "no shape": (INTS, without(f"{EXPERT}_shape"), "a tensor is missing", f"{EXPERT}_shape", AGAIN),
    "no codes": (INTS, without(f"{DOWN}_packed"), "a tensor is missing", DOWN, AGAIN),
    "a shape of floats": (
        INTS,
        put(f"{DOWN}_shape", lambda x: x.astype(np.float32)),
        "a shape is I64[2], not F32[2]",
        f"{DOWN}_shape",
        AGAIN,
    ),
    "a shape of three": (
        INTS,
        put(f"{DOWN}_shape", lambda x: np.append(x, 1)),
        "a shape is I64[2], not I64[3]",
        f"{DOWN}_shape",
        AGAIN,
    ),
    "a negative shape": (INTS, put(f"{DOWN}_shape", lambda x: -x), "the shape is [-137, -261]", f"{DOWN}_shape", AGAIN),
    "a shape that contradicts the codes": (
        INTS,
        put(f"{DOWN}_shape", lambda x: x + np.array([0, 8])),
        "the packed weights are [137, 33], not [137, 34]",
        f"{DOWN}_packed",
        AGAIN,
    ),
    "a shape that contradicts the model": (
        INTS,
        put(f"{DOWN}_shape", lambda x: x - np.array([0, 1])),
        "the shape is [137, 260], not [137, 261]",
        f"{DOWN}_packed",
        "is config.json of another model?",
    ),
    "packed into bytes": (
        INTS,
        put(f"{DOWN}_packed", lambda x: x.view(np.uint8)),
        "packed weights are of type I32, not U8",
        f"{DOWN}_packed",
        AGAIN,
    ),
    "packed scales mis-shaped": (
        INTS,
        put(f"{DOWN}_scale", lambda x: x[:, :-1]),
        "the scales are [137, 8], not [137, 9]",
        f"{DOWN}_scale",
        AGAIN,
    ),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged(damage: str, tmp_path: Path) -> None:
    stored, change, what, tensor, hint = DAMAGED[damage]
    settings = fp8_config() if stored is BLOCKS else compressed_config()
    weights = dict(stored)
    change(weights)
    write(tmp_path / "model", weights, {**DATA, **SIZES, **settings})
    with pytest.raises(DeepZigError) as error:
        fuse(tmp_path / "model", Options())
    folder = tmp_path / "model"
    places = (f"{folder}, tensor {tensor}", f"{folder / 'model.safetensors'}, tensor {tensor}")
    assert (error.value.what, error.value.hint) == (what, hint)
    assert error.value.where in places


@pytest.mark.parametrize(
    ("stored", "settings", "name", "change"),
    [
        (BLOCKS, fp8_config(), DOWN, put(DOWN, nan_code)),
        (BLOCKS, fp8_config(), DOWN, put(f"{DOWN}_scale_inv", lambda x: x * np.float32("inf"))),
        (WEIGHTS, {}, DOWN, put(DOWN, lambda x: np.where(x == x.max(), np.float32("nan"), x))),
        (HALF, {}, "lm_head.weight", put("lm_head.weight", infinite)),
    ],
)  # fmt: skip
def test_weights_that_are_not_finite(
    stored: dict[str, Array], settings: dict[str, Any], name: str, change: Callable[..., object], tmp_path: Path
) -> None:
    """A download gone wrong; a model with a NaN would answer with nothing but the same token."""
    weights = dict(stored)
    change(weights)
    write(tmp_path, weights, {**DATA, **SIZES, **settings})
    source, _ = fuse(tmp_path, Options())
    with pytest.raises(DeepZigError) as error:
        source.checkpoint.read(name)
    where = f"{tmp_path / 'model.safetensors'}, tensor {name}"
    assert str(error.value) == f"a weight is not a finite number\n  at: {where}\n  fix: {AGAIN}"


def changed(settings: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {"quantization_config": {**settings["quantization_config"], **changes}}


@pytest.mark.parametrize(
    ("settings", "what", "field", "hint"),
    [
        *(
            (
                {"quantization_config": {"quant_method": method}}, f"weights quantised by {method!r} can't be read",
                "quant_method", "use a checkpoint in bf16, or one of fp8, compressed-tensors",
            )
            for method in ("gptq", "awq", "bitsandbytes", "mxfp4", "modelopt", None, ["fp8"])
        ),
        ({"quantization_config": []}, "[] is not an object", "quantization_config", "correct config.json"),
        (
            fp8_config(fmt="e5m2"), "'e5m2' is not supported: DeepSeek's weights are e4m3", "fmt",
            "use a model with fmt 'e4m3'",
        ),
        *(
            (
                fp8_config(weight_block_size=size), f"{size!r} is not a list of two whole numbers from 1",
                "weight_block_size", "correct config.json",
            )
            for size in (None, 128, [128], [0, 128], [128.0, 128], "128")
        ),
        (
            compressed_config("nvfp4-pack-quantized"),
            "weights of format 'nvfp4-pack-quantized', type 'int' and 4 bits can't be read", "format",
            "use one of pack-quantized int4, pack-quantized int8, int-quantized int8, float-quantized float8",
        ),
        (
            compressed_config(num_bits=3), "weights of format 'pack-quantized', type 'int' and 3 bits can't be read",
            "format", "use one of pack-quantized int4, pack-quantized int8, int-quantized int8, float-quantized float8",
        ),
        (
            compressed_config(symmetric=False), "False is not supported: weights have no zero points", "symmetric",
            "use a model with symmetric True",
        ),
        (
            compressed_config(actorder="group"), "'group' is not supported: columns are in their own order", "actorder",
            "use a model with actorder None",
        ),
        (
            compressed_config(strategy="block"), "'block' is not supported", "strategy",
            "use one of group, channel, tensor",
        ),
        (compressed_config(group_size=None), "the field is missing", "group_size", "correct config.json"),
        (compressed_config(group_size=0), "0 is not a whole number from 1", "group_size", "correct config.json"),
        (
            changed(compressed_config(), config_groups={}), "there is not just one group of weights", "config_groups",
            "use a checkpoint with one",
        ),
        (
            changed(compressed_config(), config_groups={"group_0": {"targets": ["Linear"]}}),
            "group_0 does not say how weights are stored", "config_groups", "correct config.json",
        ),
    ],
)  # fmt: skip
def test_configs_that_can_not_be_read(
    settings: dict[str, Any], what: str, field: str, hint: str, tmp_path: Path
) -> None:
    write(tmp_path, WEIGHTS, {**DATA, **SIZES, **settings})
    with pytest.raises(DeepZigError) as error:
        fuse(tmp_path, Options())
    assert (error.value.what, error.value.hint) == (what, hint)
    assert error.value.where.startswith(str(tmp_path / "config.json")) and error.value.where.endswith(f"field {field}")
