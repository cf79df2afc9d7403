"""Checkpoints made by transformers, in configs that differ where implementations go wrong."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 40.0,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 64,
}
PLAIN = {"rope_type": "default", "rope_theta": 10000.0}

BASE: dict[str, Any] = {
    "vocab_size": 331,
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 3,
    "first_k_dense_replace": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "q_lora_rank": 48,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "max_position_embeddings": 2560,
    "rms_norm_eps": 1e-6,
    "rope_parameters": YARN,
}

V2: dict[str, Any] = {
    **BASE,
    "topk_method": "greedy",
    "n_group": 1,
    "topk_group": 1,
    "norm_topk_prob": False,
    "routed_scaling_factor": 1.0,
    "rope_parameters": {**YARN, "mscale": 0.707, "mscale_all_dim": 0.707},
}
GLM: dict[str, Any] = {
    **{k: v for k, v in BASE.items() if k != "first_k_dense_replace"},
    "n_group": 1,
    "topk_group": 1,
    "qk_nope_head_dim": 24,
    "v_head_dim": 32,
    "routed_scaling_factor": 1.8,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {**PLAIN, "rope_theta": 1e6},
}

FAMILIES: dict[str, tuple[type, type]] = {
    "deepseek_v2": (transformers.DeepseekV2Config, transformers.DeepseekV2ForCausalLM),
    "deepseek_v3": (transformers.DeepseekV3Config, transformers.DeepseekV3ForCausalLM),
    "glm4_moe_lite": (transformers.Glm4MoeLiteConfig, transformers.Glm4MoeLiteForCausalLM),
    "kimi_k2": (transformers.DeepseekV3Config, transformers.DeepseekV3ForCausalLM),
}
"""model_type that config.json shall say -> classes of transformers."""

CONFIGS: dict[str, dict[str, Any]] = {
    "yarn-groups": {},
    "plain-one-group": {"rope_parameters": PLAIN, "n_group": 1, "topk_group": 1, "n_routed_experts": 7},
    "no-q-lora": {
        "q_lora_rank": None,
        "norm_topk_prob": False,
        "rms_norm_eps": 1e-3,
        "rope_parameters": {**PLAIN, "rope_theta": 50000.0},
        "routed_scaling_factor": 2.446,
    },
    "yarn-clamp-bias": {
        "rope_parameters": {**YARN, "factor": 32.0, "beta_fast": 1, "beta_slow": 1},
        "attention_bias": True,
        "num_experts_per_tok": 3,
    },
    "half-split-rope": {"rope_interleave": False, "rope_parameters": {**YARN, "mscale": 0.707, "mscale_all_dim": 0.5}},
    "tied-wide-values": {
        "tie_word_embeddings": True,
        "v_head_dim": 24,
        "n_shared_experts": 3,
        "num_experts_per_tok": 1,
    },
    "odd-sizes": {
        "vocab_size": 257,
        "hidden_size": 75,
        "intermediate_size": 101,
        "moe_intermediate_size": 27,
        "num_attention_heads": 3,
        "num_key_value_heads": 3,
        "q_lora_rank": 35,
        "kv_lora_rank": 29,
        "qk_nope_head_dim": 13,
        "qk_rope_head_dim": 6,
        "v_head_dim": 11,
        "n_routed_experts": 9,
        "n_group": 3,
        "topk_group": 2,
        "rope_parameters": {**YARN, "mscale_all_dim": 0.0},
    },
    "all-dense": {"first_k_dense_replace": 3, "attention_bias": True, "q_lora_rank": None},
    "v2-lite": {
        **V2,
        "model_type": "deepseek_v2",
        "q_lora_rank": None,
        "n_shared_experts": 2,
        "num_experts_per_tok": 3,
    },
    "v2-groups": {
        **V2,
        "model_type": "deepseek_v2",
        "topk_method": "group_limited_greedy",
        "n_routed_experts": 15,
        "n_group": 5,
        "topk_group": 2,
        "num_experts_per_tok": 4,
        "routed_scaling_factor": 16.0,
        "rms_norm_eps": 1e-4,
    },
    "v2-all-sparse": {
        **V2,
        "model_type": "deepseek_v2",
        "first_k_dense_replace": 0,
        "attention_bias": True,
        "hidden_size": 76,
        "v_head_dim": 13,
        "rope_parameters": PLAIN,
    },
    "glm": {**GLM, "model_type": "glm4_moe_lite"},
    "glm-mixed-layers": {
        **GLM,
        "model_type": "glm4_moe_lite",
        "mlp_layer_types": ["sparse", "dense", "sparse"],
        "q_lora_rank": None,
        "n_routed_experts": 9,
        "rope_interleave": False,
    },
    "moonlight": {
        "q_lora_rank": None,
        "n_group": 1,
        "topk_group": 1,
        "n_shared_experts": 2,
        "routed_scaling_factor": 2.446,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {**PLAIN, "rope_theta": 50000.0},
    },
    "kimi-k2": {
        "model_type": "kimi_k2",
        "n_group": 1,
        "topk_group": 1,
        "n_routed_experts": 24,
        "num_experts_per_tok": 8,
        "routed_scaling_factor": 2.827,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {**YARN, "rope_theta": 50000.0, "factor": 32.0, "beta_fast": 1.0, "beta_slow": 1.0},
    },
}
"""Changes to BASE; a family's own base brings all its fields."""


@torch.no_grad()
def make(folder: Path, name: str, seed: int, dtype: torch.dtype = torch.float32) -> Any:
    """Write the checkpoint of config `name` and return the f32 model of the same (rounded) weights.

    Linears are N(0, 1/fan_in), so that every part shows in the logits; router biases are mostly negative.
    """
    fields = {"model_type": "deepseek_v3", **BASE, **CONFIGS[name]}
    family = fields.pop("model_type")
    config_class, model_class = FAMILIES[family]
    config = config_class(**fields, bos_token_id=0, eos_token_id=1, pad_token_id=None, initializer_range=0.02)
    config._attn_implementation = "eager"
    config._experts_implementation = "eager"  # grouped_mm refuses odd sizes
    generator = torch.Generator().manual_seed(seed)
    model = model_class(config).eval()
    tensors = dict(model.named_parameters())
    tensors |= {n: b for n, b in model.named_buffers() if n.endswith("e_score_correction_bias")}
    for key, tensor in tensors.items():
        mean, std = 0.0, 1.0
        if key.endswith("e_score_correction_bias"):
            mean, std = -0.6, 0.15
        elif tensor.dim() == 1:
            mean, std = (0.0, 0.3) if key.endswith("bias") else (1.0, 0.1)
        elif "embed_tokens" not in key:
            std = 1 / math.sqrt(tensor.shape[-1])
        tensor.normal_(mean, std, generator=generator)
        if "e_score_correction_bias" not in key:
            tensor.copy_(tensor.to(dtype).float())
    if config.tie_word_embeddings:
        model.tie_weights()
    stored = model if dtype == torch.float32 else _rounded(model, dtype)
    stored.save_pretrained(folder)
    edit_config(folder, lambda data: {**data, "model_type": family})
    if dtype != torch.float32:
        model.float()
    return model


def _rounded(model: Any, dtype: torch.dtype) -> Any:
    import copy

    clone = copy.deepcopy(model)
    biases = {n: b.clone() for n, b in clone.named_buffers() if n.endswith("e_score_correction_bias")}
    clone.to(dtype)
    for name, value in biases.items():
        clone.get_buffer(name).data = value
    clone.config.dtype = dtype
    return clone


def use_deepseek_spelling(folder: Path) -> None:
    """Rewrite the RoPE fields of config.json as DeepSeek's own files have them."""

    def edit(config: dict[str, Any]) -> dict[str, Any]:
        rope = config.pop("rope_parameters")
        theta, kind = rope.pop("rope_theta"), rope.pop("rope_type")
        scaling = None if kind == "default" else {**rope, "type": kind}
        return {**config, "rope_theta": theta, "rope_scaling": scaling}

    edit_config(folder, edit)


def edit_config(folder: Path, edit: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Change what config.json says."""
    path = folder / "config.json"
    path.write_text(json.dumps(edit(json.loads(path.read_text()))))


@torch.no_grad()
def logits(model: Any, tokens: np.ndarray) -> np.ndarray:
    """Logits of all positions, f32 [n, vocab]."""
    result: np.ndarray = model(torch.tensor(tokens[None].astype(np.int64))).logits[0].float().numpy()
    return result
