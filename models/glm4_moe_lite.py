"""GLM-4.7-Flash: DeepSeek-V3's layers in other sizes, and a list that says which of them are mixtures of experts.

After transformers/models/glm4_moe_lite/configuration_glm4_moe_lite.py.
"""

from __future__ import annotations

from .config import DENSE, SPARSE, ModelConfig, read
from .fields import Fields

DEFAULTS = {
    "bos_token_id": 0, "eos_token_id": 1, "n_shared_experts": 1, "q_lora_rank": 768, "rms_norm_eps": 1e-5,
    "routed_scaling_factor": 1.8,
}  # fmt: skip
"""What transformers' Glm4MoeLiteConfig takes for a field that is absent."""


def read_config(f: Fields) -> ModelConfig:
    """The config of config.json; raises as `config.read`."""
    f.only("scoring_func", "sigmoid", "this family routes by sigmoid")
    f.only("topk_method", "noaux_tc", "this family routes by biased scores")
    layers = f.integer("num_hidden_layers")
    kinds = f.data.get("mlp_layer_types")
    if kinds is None:
        kinds = [DENSE] + [SPARSE] * (layers - 1)
    if not isinstance(kinds, list) or len(kinds) != layers or not all(kind in (DENSE, SPARSE) for kind in kinds):
        raise f.fail("mlp_layer_types", f"not a list of {layers} times {DENSE!r} or {SPARSE!r}")
    f = f.with_defaults(**DEFAULTS)
    return read(f, mlp_layer_types=tuple(kinds), scoring_func="sigmoid", router_bias=True, group_best=2)
