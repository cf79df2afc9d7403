"""The config of a DeepSeek-V3 model, read from a checkpoint's config.json field by field.

The traps are those of transformers/models/deepseek_v3/configuration_deepseek_v3.py and of DeepSeek's own files, which
spell the RoPE fields differently.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepzig.errors import DeepZigError

from .rope import RopeConfig

MEND = "correct config.json"

MAX_SIZE = 2**31 - 1
"""Positions, rows and ids are int32."""

DEFAULTS: Mapping[str, Any] = {
    "bos_token_id": 0, "eos_token_id": 1, "n_group": 8, "n_shared_experts": 1, "q_lora_rank": 1536, "topk_group": 4,
}  # fmt: skip
"""What transformers' DeepseekV3Config takes for an absent field; a null means that the model has no such thing."""


@dataclass(frozen=True)
class DeepseekV3Config:
    """Sizes and switches of a model; names and meanings are those of config.json."""

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    moe_intermediate_size: int
    num_hidden_layers: int
    first_k_dense_replace: int
    moe_layer_freq: int
    num_attention_heads: int
    q_lora_rank: int | None
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    n_routed_experts: int
    num_experts_per_tok: int
    n_group: int
    topk_group: int
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
            "max_position_embeddings",
            "bos_token_id",
        )
        return {**{name: getattr(self, name) for name in names}, "eos_token_ids": list(self.eos_token_ids)}

    def is_moe(self, layer: int) -> bool:
        """Whether the layer's feed-forward network is a mixture of experts."""
        return layer >= self.first_k_dense_replace and layer % self.moe_layer_freq == 0


@dataclass(frozen=True)
class Fields:
    """The JSON object of a config, read with checks that name the field."""

    data: Mapping[str, Any]
    source: str

    def fail(self, name: str, what: str, hint: str = MEND) -> DeepZigError:
        """The error for a field."""
        return DeepZigError(what, f"{self.source}, field {name}", hint)

    def integer(self, name: str, default: int | None = None, least: int = 1) -> int:
        """A whole number of at least `least`; required if there is no default."""
        value = self.data.get(name)
        if value is None:
            value = default
        if value is None:
            raise self.fail(name, "the field is missing")
        if type(value) is not int or value < least:
            raise self.fail(name, f"{value!r} is not a whole number from {least}")
        if value > MAX_SIZE:
            raise self.fail(name, f"{value} is above {MAX_SIZE}")
        return value

    def number(self, name: str, default: float | None = None, least: float = 0.0) -> float:
        """A finite number greater than `least`."""
        value = self.data.get(name)
        if value is None:
            value = default
        if value is None:
            raise self.fail(name, "the field is missing")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not least < value <= sys.float_info.max:
            raise self.fail(name, f"{value!r} is not a number above {least:g}")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self.data.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.fail(name, f"{value!r} is neither true nor false")
        return value

    def only(self, name: str, allowed: Any, why: str) -> None:
        """Refuse any value but `allowed`, if the field is there."""
        value = self.data.get(name, allowed)
        if value is not None and value != allowed:
            raise self.fail(name, f"{value!r} is not supported: {why}", f"use a model with {name} {allowed!r}")

    def ids(self, name: str) -> tuple[int, ...]:
        """A token id, a list of them, or nothing."""
        value = self.data.get(name)
        many = value if isinstance(value, list) else [] if value is None else [value]
        if any(type(v) is not int or v < 0 for v in many):
            raise self.fail(name, f"{value!r} is neither a token id nor a list of them")
        return tuple(many)


def parse_deepseek_v3(data: Mapping[str, Any], source: str) -> DeepseekV3Config:
    """The config in the JSON object `data`; `source` is its file, for errors.

    Raises:
        DeepZigError: a field is missing, of the wrong type, out of range, or at odds with another.
    """
    f = Fields({**DEFAULTS, **data}, source)
    f.only("hidden_act", "silu", "experts are SwiGLU")
    f.only("scoring_func", "sigmoid", "deepseek_v3 routes by sigmoid")
    f.only("topk_method", "noaux_tc", "deepseek_v3 routes by biased scores")
    bos = f.ids("bos_token_id")
    config = DeepseekV3Config(
        model_type=str(data.get("model_type")),
        vocab_size=f.integer("vocab_size"),
        hidden_size=f.integer("hidden_size"),
        intermediate_size=f.integer("intermediate_size"),
        moe_intermediate_size=f.integer("moe_intermediate_size"),
        num_hidden_layers=f.integer("num_hidden_layers"),
        first_k_dense_replace=f.integer("first_k_dense_replace", 3, least=0),
        moe_layer_freq=f.integer("moe_layer_freq", 1),
        num_attention_heads=f.integer("num_attention_heads"),
        q_lora_rank=None if f.data.get("q_lora_rank") is None else f.integer("q_lora_rank"),
        kv_lora_rank=f.integer("kv_lora_rank"),
        qk_nope_head_dim=f.integer("qk_nope_head_dim"),
        qk_rope_head_dim=f.integer("qk_rope_head_dim"),
        v_head_dim=f.integer("v_head_dim"),
        n_routed_experts=f.integer("n_routed_experts"),
        num_experts_per_tok=f.integer("num_experts_per_tok"),
        n_group=f.integer("n_group", 1),
        topk_group=f.integer("topk_group", 1),
        n_shared_experts=f.integer("n_shared_experts", 0, least=0),
        norm_topk_prob=f.flag("norm_topk_prob", True),
        routed_scaling_factor=f.number("routed_scaling_factor", 2.5),
        rms_norm_eps=f.number("rms_norm_eps", 1e-6),
        attention_bias=f.flag("attention_bias", False),
        tie_word_embeddings=f.flag("tie_word_embeddings", False),
        max_position_embeddings=f.integer("max_position_embeddings", 4096),
        num_nextn_predict_layers=f.integer("num_nextn_predict_layers", 0, least=0),
        rope_interleave=f.flag("rope_interleave", True),
        bos_token_id=bos[0] if bos else None,
        eos_token_ids=f.ids("eos_token_id"),
        rope=_parse_rope(f),
    )
    _check_together(config, f)
    return config


def _check_together(c: DeepseekV3Config, f: Fields) -> None:
    """Fields that must fit each other."""
    if c.qk_rope_head_dim % 2:
        raise f.fail("qk_rope_head_dim", f"{c.qk_rope_head_dim} is odd, but RoPE turns pairs")
    if c.n_routed_experts % c.n_group:
        raise f.fail("n_group", f"{c.n_routed_experts} experts do not divide into {c.n_group} groups")
    if c.topk_group > c.n_group:
        raise f.fail("topk_group", f"{c.topk_group} groups can't be kept of {c.n_group}")
    group = c.n_routed_experts // c.n_group
    if c.n_group > 1 and group < 2:
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


ROPE_KINDS = {"default": "default", "yarn": "yarn"}


def _parse_rope(f: Fields) -> RopeConfig:
    """RoPE, in transformers' spelling (rope_parameters) or DeepSeek's (rope_theta and rope_scaling)."""
    name = "rope_parameters" if f.data.get("rope_parameters") is not None else "rope_scaling"
    data = {} if f.data.get(name) is None else f.data[name]
    if not isinstance(data, Mapping):
        raise f.fail(name, f"{data!r} is not an object")
    kind = data.get("rope_type", data.get("type", "default"))
    if not isinstance(kind, str) or kind not in ROPE_KINDS:
        raise f.fail(name, f"RoPE of type {kind!r} is not supported", f"use one of {', '.join(ROPE_KINDS)}")
    r = Fields(data, f"{f.source}, {name}")
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


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        DeepZigError: no such file, or not a JSON object.
    """
    import json

    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DeepZigError(
            f"the file can't be read: {error.strerror}", str(path), "name a Hugging Face checkpoint folder"
        ) from None
    except (ValueError, RecursionError) as error:
        why = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise DeepZigError(f"the file is not JSON: {why}", str(path), "download or write the file again") from None
    if not isinstance(data, dict):
        raise DeepZigError("the file is not a JSON object", str(path), "download or write the file again")
    return data
