"""GGUF files for tests, written by the gguf package as llama.cpp's converter does."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from .folders import DATA, Array, stacked

SIZES = {
    "hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 32, "q_lora_rank": 32, "kv_lora_rank": 64,
    "qk_nope_head_dim": 32, "v_head_dim": 32, "attention_bias": False, "routed_scaling_factor": 2.3,
    "rms_norm_eps": 1e-5, "rope_theta": 50000.0, "norm_topk_prob": True,
    "rope_scaling": {
        "type": "yarn", "factor": 32.0, "original_max_position_embeddings": 16, "beta_fast": 7.0, "beta_slow": 1.0,
        "mscale": 0.707, "mscale_all_dim": 0.707,
    },
}  # fmt: skip
"""Rows that divide into blocks of 32."""
MODEL = {**DATA, **SIZES}

KINDS = gguf.GGMLQuantizationType
RULES: tuple[tuple[str, str], ...] = (
    (r"^model\.embed_tokens\.", "token_embd."),
    (r"^model\.norm\.", "output_norm."),
    (r"^lm_head\.", "output."),
    (r"^model\.layers\.(\d+)\.", r"blk.\1."),
    (r"\.self_attn\.o_proj\.", ".attn_output."),
    (r"\.self_attn\.kv_a_proj_with_mqa\.", ".attn_kv_a_mqa."),
    (r"\.self_attn\.kv_a_layernorm\.", ".attn_kv_a_norm."),
    (r"\.self_attn\.q_a_layernorm\.", ".attn_q_a_norm."),
    (r"\.self_attn\.(\w+)_proj\.", r".attn_\1."),
    (r"\.input_layernorm\.", ".attn_norm."),
    (r"\.post_attention_layernorm\.", ".ffn_norm."),
    (r"\.mlp\.gate\.e_score_correction_bias$", ".exp_probs_b.bias"),
    (r"\.mlp\.gate\.weight$", ".ffn_gate_inp.weight"),
    (r"\.mlp\.shared_experts\.(\w+)_proj\.", r".ffn_\1_shexp."),
    (r"\.mlp\.experts\.(\w+)_proj$", r".ffn_\1_exps.weight"),
    (r"\.mlp\.(\w+)_proj\.", r".ffn_\1."),
)
"""The converter's renaming."""


def rename(name: str) -> str:
    for pattern, new in RULES:
        name = re.sub(pattern, new, name)
    return name


def convert(weights: Mapping[str, Array], split: bool) -> dict[str, Array]:
    """Tensors under llama.cpp's names; with `split` kv_b_proj is two stacks, as in files since May 2025."""
    heads, nope, latent = MODEL["num_attention_heads"], MODEL["qk_nope_head_dim"], MODEL["kv_lora_rank"]
    made: dict[str, Array] = {}
    for name, x in stacked(weights).items():
        if name.endswith("gate_up_proj"):
            half = x.shape[1] // 2
            made[rename(name.replace("gate_up", "gate"))], made[rename(name.replace("gate_up", "up"))] = (
                x[:, :half],
                x[:, half:],
            )
        elif split and name.endswith("kv_b_proj.weight"):
            by_head = x.reshape(heads, -1, latent)
            stem = rename(name).replace("attn_kv_b", "attn_{}_b")
            made[stem.format("k")] = by_head[:, :nope].transpose(0, 2, 1)
            made[stem.format("v")] = by_head[:, nope:]
        else:
            made[rename(name)] = x
    return {name: np.ascontiguousarray(x, np.float32) for name, x in made.items()}


def kind_of(name: str, x: Array, kind: str) -> Any:
    """As the quantiser does: vectors and the router stay f32, rows that don't divide are f16."""
    if x.ndim == 1 or "ffn_gate_inp" in name:
        return KINDS.F32
    return KINDS[kind] if kind[0] != "Q" or x.shape[-1] % 32 == 0 else KINDS.F16


def rounded(tensors: Mapping[str, Array], kind: str) -> dict[str, Array]:
    """What the stored tensors mean, f32, by the package's own reading."""
    result = {}
    for name, x in tensors.items():
        k = kind_of(name, x, kind)
        result[name] = gguf.quants.dequantize(gguf.quants.quantize(x, k), k).reshape(x.shape).astype(np.float32)
    return result


def back(tensors: Mapping[str, Array], like: Mapping[str, Array]) -> dict[str, Array]:
    """Tensors of llama.cpp's names under those of the checkpoint, experts one by one."""
    heads, latent = MODEL["num_attention_heads"], MODEL["kv_lora_rank"]
    found: dict[str, Array] = {}
    for name, x in like.items():
        expert = re.match(r"(.*\.experts)\.(\d+)\.(\w+)_proj\.weight$", name)
        if expert:
            found[name] = tensors[rename(f"{expert[1]}.{expert[3]}_proj")][int(expert[2])]
        elif rename(name) in tensors:
            found[name] = tensors[rename(name)]
        else:
            keys, values = (tensors[rename(name).replace("kv_b", f"{p}_b")] for p in "kv")
            found[name] = np.concatenate([keys.transpose(0, 2, 1), values], 1).reshape(-1, latent)
            assert x.shape == found[name].shape and len(keys) == heads
    return {name: np.ascontiguousarray(x) for name, x in found.items()}


def write_gguf(path: Path, tensors: Mapping[str, Array], kind: str, split: bool = True, **changes: Any) -> Path:
    """A file of the model MODEL; `changes` set keys (dots as `__`), or with None leave them out."""
    w = gguf.GGUFWriter(path, changes.pop("arch", "deepseek2"))
    m, rope = MODEL, MODEL["rope_scaling"]
    head = m["qk_nope_head_dim"] + m["qk_rope_head_dim"]
    w.add_block_count(m["num_hidden_layers"])
    w.add_context_length(m["max_position_embeddings"])
    w.add_embedding_length(m["hidden_size"])
    w.add_feed_forward_length(m["intermediate_size"])
    w.add_head_count(m["num_attention_heads"])
    w.add_head_count_kv(1 if split else m["num_attention_heads"])
    w.add_rope_freq_base(m["rope_theta"])
    w.add_layer_norm_rms_eps(m["rms_norm_eps"])
    w.add_leading_dense_block_count(m["first_k_dense_replace"])
    w.add_vocab_size(m["vocab_size"])
    w.add_q_lora_rank(m["q_lora_rank"])
    w.add_kv_lora_rank(m["kv_lora_rank"])
    if split:
        w.add_key_length(m["kv_lora_rank"] + m["qk_rope_head_dim"])
        w.add_value_length(m["kv_lora_rank"])
        w.add_key_length_mla(head)
        w.add_value_length_mla(m["v_head_dim"])
    else:
        w.add_key_length(head)
        w.add_value_length(m["v_head_dim"])
    w.add_rope_dimension_count(m["qk_rope_head_dim"])
    w.add_expert_feed_forward_length(m["moe_intermediate_size"])
    w.add_expert_count(m["n_routed_experts"])
    w.add_expert_used_count(m["num_experts_per_tok"])
    w.add_expert_shared_count(m["n_shared_experts"])
    w.add_expert_group_count(m["n_group"])
    w.add_expert_group_used_count(m["topk_group"])
    w.add_expert_weights_scale(m["routed_scaling_factor"])
    w.add_expert_weights_norm(m["norm_topk_prob"])
    w.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    w.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    w.add_rope_scaling_factor(rope["factor"])
    w.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    w.add_rope_scaling_yarn_beta_fast(rope["beta_fast"])
    w.add_rope_scaling_yarn_beta_slow(rope["beta_slow"])
    w.add_rope_scaling_yarn_log_mul(0.1 * rope["mscale_all_dim"])
    w.add_bos_token_id(m["bos_token_id"])
    w.add_eos_token_id(m["eos_token_id"])
    for key, value in changes.items():
        name = key.replace("__", ".")
        w.kv_data[0].pop(name, None)
        if value is not None:
            add = {str: w.add_string, int: w.add_uint32, float: w.add_float32, list: w.add_array, bool: w.add_bool}
            add[type(value)](name, value)
    for name, x in tensors.items():
        k = kind_of(name, x, kind)
        w.add_tensor(name, gguf.quants.quantize(x, k), raw_dtype=k)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return path
