"""Quantisers for tests: what is stored, and the same weights as floats. Written from the formats' descriptions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from .folders import STORED, Array

Quantised = tuple[dict[str, Array], dict[str, Array]]
"""Tensors as stored, and tensors as floats."""

E4M3, E8M0 = np.dtype(ml_dtypes.float8_e4m3fn), np.dtype(ml_dtypes.float8_e8m0fnu)
KEPT = ("embed_tokens", "lm_head", "mlp.gate.", "norm", "bias", "shared_head", "eh_proj")
"""What published checkpoints leave as it is."""


def spread(scales: Array, rows: int, columns: int, shape: tuple[int, ...]) -> Array:
    """A scale for each element."""
    whole = np.asarray(scales, np.float32)
    return np.repeat(np.repeat(whole, rows, -2), columns, -1)[..., : shape[-2], : shape[-1]]


def greatest(x: Array, rows: int, columns: int) -> Array:
    """The greatest magnitude of each block."""
    blocks = [
        [np.abs(x[i : i + rows, j : j + columns]).max() for j in range(0, x.shape[1], columns)]
        for i in range(0, x.shape[0], rows)
    ]
    return np.array(blocks, np.float32)


def each(weights: Mapping[str, Array], store: Callable[[str, Array], tuple[dict[str, Array], Array]]) -> Quantised:
    stored: dict[str, Array] = {}
    floats: dict[str, Array] = {}
    for name, x in weights.items():
        if x.ndim < 2 or any(part in name for part in KEPT):
            stored[name] = floats[name] = x
            continue
        parts, floats[name] = store(name, x.astype(np.float32))
        stored |= parts
    return stored, floats


def fp8(weights: Mapping[str, Array], block: tuple[int, int] = (128, 128), scales: str = "f32") -> Quantised:
    """DeepSeek's: e4m3 by blocks; `scales` is f32, bf16, or ue8m0 for powers of two."""

    def store(name: str, x: Array) -> tuple[dict[str, Array], Array]:
        scale = greatest(x, *block) / 448
        scale = np.exp2(np.ceil(np.log2(scale))).astype(E8M0) if scales == "ue8m0" else scale.astype(STORED[scales])
        wide = spread(scale, *block, x.shape)
        codes = np.clip(x / wide, -448, 448).astype(E4M3)
        return {name: codes, f"{name}_scale_inv": scale}, codes.astype(np.float32) * wide

    return each(weights, store)


def packed(weights: Mapping[str, Array], bits: int = 4, group: int = 32, scales: str = "bf16") -> Quantised:
    """compressed-tensors' pack-quantized, symmetric; a group of 0 is the whole row."""

    def store(name: str, x: Array) -> tuple[dict[str, Array], Array]:
        width = group or x.shape[1]
        scale = (greatest(x, 1, width) / (2 ** (bits - 1) - 1)).astype(STORED[scales])
        wide = spread(scale, 1, width, x.shape)
        half = 2 ** (bits - 1)
        codes = np.clip(np.rint(x / wide), -half, half - 1).astype(np.int64)
        words = np.zeros((x.shape[0], -(-x.shape[1] * bits // 32)), np.int64)
        for column in range(x.shape[1]):
            words[:, column * bits // 32] |= (codes[:, column] + half) << (column * bits % 32)
        stored = {
            f"{name}_packed": words.astype(np.uint32).view(np.int32),
            f"{name}_scale": scale,
            f"{name}_shape": np.array(x.shape, np.int64),
        }
        return stored, codes.astype(np.float32) * wide

    return each(weights, store)


def by_row(weights: Mapping[str, Array], dtype: Any, per_tensor: bool = False) -> Quantised:
    """compressed-tensors' float-quantized and int-quantized: a code an element, a scale a row or a tensor."""

    def store(name: str, x: Array) -> tuple[dict[str, Array], Array]:
        top = 448 if dtype == E4M3 else 127
        scale = (greatest(x, *x.shape) if per_tensor else greatest(x, 1, x.shape[1])) / np.float32(top)
        codes = np.clip(x / scale, -top, top)
        codes = codes.astype(dtype) if dtype == E4M3 else np.rint(codes).astype(dtype)
        stored = scale.reshape(-1) if per_tensor else scale
        return {name: codes, f"{name}_scale": stored}, codes.astype(np.float32) * scale

    return each(weights, store)


def fp8_config(**changes: Any) -> dict[str, Any]:
    """As DeepSeek-V3 has it."""
    base = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
    return {"quantization_config": {**base, **changes}}


def compressed_config(format_: str = "pack-quantized", **weights: Any) -> dict[str, Any]:
    """As Kimi-K2-Thinking has it."""
    group = {
        "actorder": None, "dynamic": False, "group_size": 32, "num_bits": 4, "strategy": "group", "symmetric": True,
        "type": "int", **weights,
    }  # fmt: skip
    return {
        "quantization_config": {
            "quant_method": "compressed-tensors",
            "format": format_,
            "config_groups": {"group_0": {"input_activations": None, "targets": ["Linear"], "weights": group}},
            "ignore": ["lm_head", "re:.*self_attn.*"],
            "quantization_status": "compressed",
        }
    }
