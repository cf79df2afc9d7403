"""Checkpoint folders for tests: random weights under the names DeepSeek gives them, written file by file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from deepzig.models.checkpoint import Checkpoint
from deepzig.models.config import ModelConfig
from deepzig.models.families import parse_config
from deepzig.models.fields import Fields
from deepzig.models.source import open_source
from deepzig.models.tensors import one_by_one, tensors

Array = npt.NDArray[Any]

DATA: dict[str, Any] = {
    "model_type": "deepseek_v3",
    "vocab_size": 67,
    "hidden_size": 40,
    "intermediate_size": 52,
    "moe_intermediate_size": 18,
    "num_hidden_layers": 2,
    "first_k_dense_replace": 1,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "q_lora_rank": 22,
    "kv_lora_rank": 20,
    "qk_nope_head_dim": 10,
    "qk_rope_head_dim": 6,
    "v_head_dim": 14,
    "n_routed_experts": 6,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "n_shared_experts": 2,
    "attention_bias": True,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
"""A small model of odd sizes."""

KINDS = {
    np.dtype(np.float32): "F32", np.dtype(np.float16): "F16", np.dtype(ml_dtypes.bfloat16): "BF16",
    np.dtype(ml_dtypes.float8_e4m3fn): "F8_E4M3", np.dtype(ml_dtypes.float8_e8m0fnu): "F8_E8M0",
    np.dtype(np.int32): "I32", np.dtype(np.int64): "I64", np.dtype(np.uint8): "U8", np.dtype(np.int8): "I8",
}  # fmt: skip
STORED = {"f32": np.dtype(np.float32), "f16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}


def config(**changes: Any) -> ModelConfig:
    """The small model with some fields changed."""
    return parse_config(Fields({**DATA, **changes}, "config.json"))


def random_weights(c: ModelConfig, seed: int, dtype: str = "f32") -> dict[str, Array]:
    """Every tensor of the model, experts one by one; spread so that each part shows in the logits."""
    rng = np.random.default_rng(seed)
    made = {}
    for name, shape in one_by_one(tensors(c)):
        mean, spread = (1.0, 0.1) if len(shape) == 1 else (0.0, shape[-1] ** -0.5)
        kind = "f32" if name.endswith("e_score_correction_bias") else dtype
        made[name] = (mean + spread * rng.standard_normal(shape)).astype(STORED[kind])
    return made


def checkpoint(folder: Path) -> Checkpoint:
    """The weights in a folder."""
    return open_source(folder).checkpoint


def stacked(weights: Mapping[str, Array]) -> dict[str, Array]:
    """The same with the experts of a layer in transformers' two tensors."""
    rest = {name: x for name, x in weights.items() if ".experts." not in name}
    for prefix in {name.split(".experts.")[0] for name in weights if ".experts." in name}:
        parts = {
            kind: [
                weights[f"{prefix}.experts.{e}.{kind}_proj.weight"]
                for e in range(sum(n.startswith(f"{prefix}.experts.") for n in weights) // 3)
            ]
            for kind in ("gate", "up", "down")
        }
        both = [np.concatenate(pair) for pair in zip(parts["gate"], parts["up"], strict=True)]
        rest[f"{prefix}.experts.gate_up_proj"] = np.stack(both)
        rest[f"{prefix}.experts.down_proj"] = np.stack(parts["down"])
    return rest


def safetensors(header: Any, payload: bytes = b"") -> bytes:
    """A file: the header as JSON (or as the bytes given), then the payload."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + payload


def save(path: Path, weights: Mapping[str, Array]) -> None:
    """One weight file."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, x in weights.items():
        header[name] = {"dtype": KINDS[x.dtype], "shape": x.shape, "data_offsets": [at, at + x.nbytes]}
        at += x.nbytes
    path.write_bytes(safetensors(header, b"".join(x.tobytes() for x in weights.values())))


def write(folder: Path, weights: Mapping[str, Array], data: Mapping[str, Any] = DATA, shards: int = 1) -> Path:
    """A checkpoint folder; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(dict(data)))
    if shards == 1:
        save(folder / "model.safetensors", weights)
        return folder
    weight_map = {}
    for i in range(shards):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        part = {name: weights[name] for name in list(weights)[i::shards]}
        save(folder / file, part)
        weight_map.update(dict.fromkeys(part, file))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder
