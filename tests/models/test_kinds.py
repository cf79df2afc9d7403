"""What parameters are for, by their names."""

from __future__ import annotations

import pytest

from deepzig.models.kinds import KINDS, kind_of
from deepzig.models.tensors import tensors

from .folders import config

LAYER = "model.layers.7."


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("model.embed_tokens.weight", "embeddings"),
        ("lm_head.weight", "head"),
        (f"{LAYER}shared_head.head.weight", "head"),
        (f"{LAYER}self_attn.kv_b_proj.weight", "attention"),
        (f"{LAYER}self_attn.q_a_layernorm.weight", "attention"),
        (f"{LAYER}mlp.gate.weight", "router"),
        (f"{LAYER}mlp.gate.e_score_correction_bias", "router"),
        (f"{LAYER}mlp.gate_proj.weight", "dense"),
        (f"{LAYER}mlp.experts.gate_proj.weight", "experts"),
        (f"{LAYER}mlp.shared_experts.down_proj.weight", "shared_experts"),
        (f"{LAYER}input_layernorm.weight", "other"),
        ("rope.inv_freq", "other"),
    ],
)
def test_kind_of(name: str, kind: str) -> None:
    assert kind_of(name) == kind


def test_only_norms_of_a_model_are_of_no_kind() -> None:
    names = [name for name, _ in tensors(config(num_nextn_predict_layers=1))]
    kinds = {name: kind_of(name) for name in names}
    assert set(kinds.values()) == {*KINDS} - {"draft"}
    assert all("norm" in name or "eh_proj" in name for name, kind in kinds.items() if kind == "other")
