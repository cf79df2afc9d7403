"""DeepSeek models in GGUF: llama.cpp's names and keys as those of the Hugging Face checkpoint.

After llama.cpp, conversion/deepseek.py (class DeepseekV2Model) and gguf-py/gguf/constants.py. RoPE pairs lie as in the
checkpoint. Newer files hold `kv_b_proj` as two stacks of heads, the key part of each transposed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from deepzig.errors import DeepZigError

from .fields import Fields
from .gguf_files import GgufFile
from .storage import Weight

ARCHITECTURE = "deepseek2"

MODEL_TYPES = {1: "deepseek_v2", 2: "deepseek_v3"}
"""expert_gating_func (softmax, sigmoid) -> model_type."""

NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_q_a": "self_attn.q_a_proj",
    "attn_q_a_norm": "self_attn.q_a_layernorm",
    "attn_q_b": "self_attn.q_b_proj",
    "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
    "attn_kv_a_norm": "self_attn.kv_a_layernorm",
    "attn_kv_b": "self_attn.kv_b_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.gate_proj",
    "ffn_up_exps": "mlp.experts.up_proj",
    "ffn_down_exps": "mlp.experts.down_proj",
    "ffn_gate_shexp": "mlp.shared_experts.gate_proj",
    "ffn_up_shexp": "mlp.shared_experts.up_proj",
    "ffn_down_shexp": "mlp.shared_experts.down_proj",
}
"""llama.cpp's names -> those of the checkpoint."""

BLOCK = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)$")
ROPE_FREQS = "rope_freqs.weight"


@dataclass(frozen=True)
class _Keys:
    """Metadata under the architecture's name, floats as the shortest decimal that f32 rounds to them."""

    file: GgufFile

    def get(self, name: str, default: Any = None) -> Any:
        value = self.file.metadata.get(f"{ARCHITECTURE}.{name}", default)
        return float(str(np.float32(value))) if isinstance(value, float) else value

    def need(self, name: str) -> int:
        f = Fields({name: self.get(name)}, str(self.file.path))
        try:
            return f.integer(name)
        except DeepZigError as error:
            where = f"{self.file.path}, key {ARCHITECTURE}.{name}"
            raise DeepZigError(error.what.replace("field", "key"), where, "convert the model again") from None


def config_json(file: GgufFile) -> dict[str, Any]:
    """The config.json that the metadata stand for.

    Raises:
        DeepZigError: another architecture, or a key that is missing.
    """
    architecture = file.metadata.get("general.architecture")
    if architecture != ARCHITECTURE:
        what = f"the architecture {architecture!r} is not supported"
        raise DeepZigError(what, f"{file.path}, key general.architecture", f"use a model of {ARCHITECTURE}")
    k = _Keys(file)
    rope = k.need("rope.dimension_count")
    key, value = ("key_length_mla", "value_length_mla")
    if k.get(f"attention.{key}") is None:  # files from before the split of kv_b_proj
        key, value = ("key_length", "value_length")
    return {
        "model_type": MODEL_TYPES.get(k.get("expert_gating_func", 1), "deepseek_v2"),
        "vocab_size": k.get("vocab_size") or len(file.metadata.get("tokenizer.ggml.tokens", [])),
        "hidden_size": k.need("embedding_length"),
        "intermediate_size": k.need("feed_forward_length"),
        "moe_intermediate_size": k.need("expert_feed_forward_length"),
        "num_hidden_layers": k.need("block_count"),
        "first_k_dense_replace": k.get("leading_dense_block_count", 0),
        "num_attention_heads": k.need("attention.head_count"),
        "q_lora_rank": k.get("attention.q_lora_rank"),
        "kv_lora_rank": k.need("attention.kv_lora_rank"),
        "qk_nope_head_dim": k.need(f"attention.{key}") - rope,
        "qk_rope_head_dim": rope,
        "v_head_dim": k.need(f"attention.{value}"),
        "n_routed_experts": k.need("expert_count"),
        "num_experts_per_tok": k.need("expert_used_count"),
        "n_group": k.get("expert_group_count", 1),
        "topk_group": k.get("expert_group_used_count", 1),
        "n_shared_experts": k.get("expert_shared_count"),
        "norm_topk_prob": k.get("expert_weights_norm", False),
        "routed_scaling_factor": k.get("expert_weights_scale") or 1.0,
        "rms_norm_eps": k.get("attention.layer_norm_rms_epsilon", 1e-6),
        "attention_bias": "blk.0.attn_output.bias" in file.tensors,
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "max_position_embeddings": k.need("context_length"),
        "num_nextn_predict_layers": 0,
        "rope_theta": k.get("rope.freq_base", 10000.0),
        "rope_scaling": _rope_scaling(k),
        "bos_token_id": file.metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": file.metadata.get("tokenizer.ggml.eos_token_id"),
    }


def _rope_scaling(k: _Keys) -> dict[str, Any] | None:
    kind = k.get("rope.scaling.type", "none")
    if kind == "none":
        return None
    mscale = round(10 * k.get("rope.scaling.yarn_log_multiplier", 0.0), 6)  # stored as a tenth
    given = {
        "type": kind,
        "factor": k.get("rope.scaling.factor"),
        "original_max_position_embeddings": k.get("rope.scaling.original_context_length"),
        "beta_fast": k.get("rope.scaling.yarn_beta_fast"),
        "beta_slow": k.get("rope.scaling.yarn_beta_slow"),
        "mscale": mscale,
        "mscale_all_dim": mscale,
    }
    return {name: value for name, value in given.items() if value is not None}


def weights(file: GgufFile, config: Mapping[str, Any]) -> dict[str, Weight]:
    """The tensors under the names of the Hugging Face checkpoint; what has no such name keeps its own."""
    found: dict[str, Weight] = {}
    for name, weight in file.tensors.items():
        stem, _, suffix = name.rpartition(".")
        block = BLOCK.match(name)
        if stem in NAMES:
            found[f"{NAMES[stem]}.{suffix}"] = weight
        elif block and block[2] in LAYER_NAMES:
            found[f"model.layers.{block[1]}.{LAYER_NAMES[block[2]]}.{block[3]}"] = weight
        elif block and block[2] == "exp_probs_b":
            found[f"model.layers.{block[1]}.mlp.gate.e_score_correction_bias"] = weight
        elif block and block[2] == "attn_k_b" and f"blk.{block[1]}.attn_v_b.weight" in file.tensors:
            values = file.tensors[f"blk.{block[1]}.attn_v_b.weight"]
            found[f"model.layers.{block[1]}.self_attn.kv_b_proj.weight"] = _join(weight, values, config)
        elif not (block and block[2] == "attn_v_b") and name != ROPE_FREQS:
            found[name] = weight
    return found


def _join(keys: Weight, values: Weight, config: Mapping[str, Any]) -> Weight:
    """kv_b_proj, [heads * (nope + v), latent], of keys [heads, latent, nope] and values [heads, v, latent]."""
    heads, latent = config["num_attention_heads"], config["kv_lora_rank"]
    nope, v_dim = config["qk_nope_head_dim"], config["v_head_dim"]
    for part, wanted in ((keys, (heads, latent, nope)), (values, (heads, v_dim, latent))):
        if part.shape != wanted:
            raise DeepZigError(
                f"the shape is {list(part.shape)}, not {list(wanted)}", part.where, "convert the model again"
            )
    same = keys.dtype == values.dtype

    def read(index: tuple[int, ...]) -> npt.NDArray[Any]:
        parts = [part.read(()) if same else _wide(part) for part in (keys, values)]
        whole = np.concatenate([parts[0].transpose(0, 2, 1), parts[1]], 1).reshape(heads * (nope + v_dim), latent)
        return whole[index]

    return Weight(keys.where, (heads * (nope + v_dim), latent), keys.dtype if same else "f32", read)


def _wide(weight: Weight) -> npt.NDArray[np.float32]:
    """A whole tensor as f32."""
    x = weight.read(())
    return (x.astype(np.uint32) << 16).view(np.float32) if weight.dtype == "bf16" else x.astype(np.float32)
