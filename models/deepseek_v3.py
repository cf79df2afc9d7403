"""DeepSeek-V3 and R1 (arXiv:2412.19437), and Moonlight and Kimi-K2 (arXiv:2507.20534), which have the same layers.

Routing is by sigmoid with a bias, whoever saved the checkpoint: transformers' DeepseekV3Config neither reads nor writes
`scoring_func` and `topk_method`, so they are checked only where they are.
"""

from __future__ import annotations

from .config import ModelConfig, first_dense, read
from .fields import Fields

DEFAULTS = {
    "bos_token_id": 0, "eos_token_id": 1, "first_k_dense_replace": 3, "n_group": 8, "n_shared_experts": 1,
    "q_lora_rank": 1536, "routed_scaling_factor": 2.5, "topk_group": 4,
}  # fmt: skip
"""What transformers' DeepseekV3Config takes for a field that is absent."""


def read_config(f: Fields) -> ModelConfig:
    """The config of config.json; raises as `config.read`."""
    f.only("scoring_func", "sigmoid", "this family routes by sigmoid")
    f.only("topk_method", "noaux_tc", "this family routes by biased scores")
    f.only("moe_layer_freq", 1, "all layers after the dense ones are mixtures of experts")
    f = f.with_defaults(**DEFAULTS)
    return read(f, mlp_layer_types=first_dense(f), scoring_func="sigmoid", router_bias=True, group_best=2)
