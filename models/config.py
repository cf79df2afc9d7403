"""What a DeepSeek-class model is made of, read from a checkpoint's config.json.

The fields that families share are read here; each family's own file says how it differs. The traps are those of
transformers' configuration files and of DeepSeek's own, which spell the RoPE fields differently.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .fields import Fields
from .rope import RopeConfig

DENSE, SPARSE = "dense", "sparse"
"""Kinds of feed-forward networks, named as in `mlp_layer_types` of transformers."""


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and switches of a model; names and meanings are those of config.json, but for the ones told here.

    Attributes:
        mlp_layer_types: of each layer, `dense` or `sparse` (a mixture of experts).
        scoring_func: `sigmoid` or `softmax`.
        router_bias: whether a bias takes part in the choice of experts (`e_score_correction_bias`).
        n_group: groups that the choice is limited by; 1 for no limit.
        group_best: how many of its experts a group is scored by: the sum of that many greatest.
        eos_token_ids: every token that ends an answer.
        rope: positions.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    moe_intermediate_size: int
    num_hidden_layers: int
    mlp_layer_types: tuple[str, ...]
    num_attention_heads: int
    q_lora_rank: int | None
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    n_routed_experts: int
    num_experts_per_tok: int
    scoring_func: str
    router_bias: bool
    n_group: int
    topk_group: int
    group_best: int
    n_shared_experts: int
    norm_topk_prob: bool
    routed_scaling_factor: float
    rms_norm_eps: float
    attention_bias: bool
    tie_word_embeddings: bool
    max_position_embeddings: int
    num_nextn_predict_layers: int
    rope_interleave: bool
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    rope: RopeConfig

    @property
    def qk_head_dim(self) -> int:
        """Width of a query or key head."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    def summary(self) -> dict[str, Any]:
        """What an artifact records of the model, as JSON."""
        names = (
            "model_type",
            "vocab_size",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "qk_head_dim",
            "v_head_dim",
            "max_position_embeddings",
            "bos_token_id",
        )
        return {**{name: getattr(self, name) for name in names}, "eos_token_ids": list(self.eos_token_ids)}

    def is_moe(self, layer: int) -> bool:
        """Whether the layer's feed-forward network is a mixture of experts; in layers for prediction it always is."""
        return layer >= self.num_hidden_layers or self.mlp_layer_types[layer] == SPARSE


def first_dense(f: Fields) -> tuple[str, ...]:
    """`first_k_dense_replace` dense layers, then mixtures of experts."""
    layers = f.integer("num_hidden_layers")
    dense = min(f.integer("first_k_dense_replace", least=0), layers)
    return (DENSE,) * dense + (SPARSE,) * (layers - dense)


def read(
    f: Fields, *, mlp_layer_types: tuple[str, ...], scoring_func: str, router_bias: bool, group_best: int
) -> ModelConfig:
    """The config in a JSON object; the arguments after it are as in `ModelConfig`.

    Raises:
        DeepZigError: a field is missing, of the wrong type, out of range, or at odds with another.
    """
    f.only("hidden_act", "silu", "feed-forward networks are SwiGLU")
    f.only("mlp_bias", False, "feed-forward networks have no biases")
    bos = f.ids("bos_token_id")
    config = ModelConfig(
        model_type=str(f.data.get("model_type")),
        vocab_size=f.integer("vocab_size"),
        hidden_size=f.integer("hidden_size"),
        intermediate_size=f.integer("intermediate_size"),
        moe_intermediate_size=f.integer("moe_intermediate_size"),
        num_hidden_layers=f.integer("num_hidden_layers"),
        mlp_layer_types=mlp_layer_types,
        num_attention_heads=f.integer("num_attention_heads"),
        q_lora_rank=None if f.data.get("q_lora_rank") is None else f.integer("q_lora_rank"),
        kv_lora_rank=f.integer("kv_lora_rank"),
        qk_nope_head_dim=f.integer("qk_nope_head_dim"),
        qk_rope_head_dim=f.integer("qk_rope_head_dim"),
        v_head_dim=f.integer("v_head_dim"),
        n_routed_experts=f.integer("n_routed_experts"),
        num_experts_per_tok=f.integer("num_experts_per_tok"),
        scoring_func=scoring_func,
        router_bias=router_bias,
        n_group=f.integer("n_group", 1),
        topk_group=f.integer("topk_group", 1),
        group_best=group_best,
        n_shared_experts=f.integer("n_shared_experts", 0, least=0),
        norm_topk_prob=f.flag("norm_topk_prob", True),
        routed_scaling_factor=f.number("routed_scaling_factor"),
        rms_norm_eps=f.number("rms_norm_eps", 1e-6),
        attention_bias=f.flag("attention_bias", False),
        tie_word_embeddings=f.flag("tie_word_embeddings", False),
        max_position_embeddings=f.integer("max_position_embeddings", 4096),
        num_nextn_predict_layers=f.integer("num_nextn_predict_layers", 0, least=0),
        rope_interleave=f.flag("rope_interleave", True),
        bos_token_id=bos[0] if bos else None,
        eos_token_ids=f.ids("eos_token_id"),
        rope=_rope(f),
    )
    _check_together(config, f)
    return config


def _check_together(c: ModelConfig, f: Fields) -> None:
    """Fields that must fit each other."""
    if c.qk_rope_head_dim % 2:
        raise f.fail("qk_rope_head_dim", f"{c.qk_rope_head_dim} is odd, but RoPE turns pairs")
    if c.n_routed_experts % c.n_group:
        raise f.fail("n_group", f"{c.n_routed_experts} experts do not divide into {c.n_group} groups")
    if c.topk_group > c.n_group:
        raise f.fail("topk_group", f"{c.topk_group} groups can't be kept of {c.n_group}")
    group = c.n_routed_experts // c.n_group
    if c.n_group > 1 and group < c.group_best:
        raise f.fail("n_group", "a group of one expert has no two best scores")
    if c.num_experts_per_tok > group * c.topk_group:
        raise f.fail(
            "num_experts_per_tok", f"{c.num_experts_per_tok} experts can't be chosen of {group * c.topk_group}"
        )
    for name, ids in (("bos_token_id", (c.bos_token_id,)), ("eos_token_id", c.eos_token_ids)):
        if any(i is not None and i >= c.vocab_size for i in ids):
            raise f.fail(name, f"a token id is beyond the vocabulary of {c.vocab_size}")
    heads = f.data.get("num_key_value_heads")
    if heads is not None and heads != c.num_attention_heads:
        raise f.fail("num_key_value_heads", f"{heads} differs from num_attention_heads, {c.num_attention_heads}")


ROPE_KINDS = ("default", "yarn")


def _rope(f: Fields) -> RopeConfig:
    """RoPE, in transformers' spelling (rope_parameters) or DeepSeek's (rope_theta and rope_scaling)."""
    name = "rope_parameters" if f.data.get("rope_parameters") is not None else "rope_scaling"
    data = {} if f.data.get(name) is None else f.data[name]
    if not isinstance(data, Mapping):
        raise f.fail(name, f"{data!r} is not an object")
    kind = data.get("rope_type", data.get("type", "default"))
    if not isinstance(kind, str) or kind not in ROPE_KINDS:
        raise f.fail(name, f"RoPE of type {kind!r} is not supported", f"use one of {', '.join(ROPE_KINDS)}")
    r = Fields(data, f"{f.source}, {name}")
    for fields in (f, r):
        fields.only("partial_rotary_factor", 1.0, "qk_rope_head_dim says how much of a head is rotated")
    theta = r.number("rope_theta") if data.get("rope_theta") is not None else f.number("rope_theta", 10000.0)
    if theta <= 1:
        raise f.fail("rope_theta", f"{theta:g} is not above 1")
    if kind == "default":
        return RopeConfig(theta=theta)
    longest = f.integer("max_position_embeddings", 4096)
    original = r.integer("original_max_position_embeddings", longest)
    return RopeConfig(
        theta=theta,
        kind=kind,
        factor=r.number("factor", longest / original),
        original_max_position_embeddings=original,
        beta_fast=r.number("beta_fast", 32.0),
        beta_slow=r.number("beta_slow", 1.0),
        mscale=_at_least_zero(r, "mscale"),
        mscale_all_dim=_at_least_zero(r, "mscale_all_dim"),
        attention_factor=None if data.get("attention_factor") is None else r.number("attention_factor"),
        truncate=r.flag("truncate", True),
    )


def _at_least_zero(f: Fields, name: str) -> float:
    return 0.0 if not f.data.get(name) else f.number(name)
