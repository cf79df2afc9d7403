"""DeepSeek-V2 and V2-Lite (arXiv:2405.04434): routing by softmax without a bias, groups by their best expert alone.

The weights of the chosen are scaled and never divided by their sum, as in transformers'
models/deepseek_v2/modeling_deepseek_v2.py, which ignores `norm_topk_prob`; the published models say false.
"""

from __future__ import annotations

from .config import ModelConfig, first_dense, read
from .fields import Fields

DEFAULTS = {
    "bos_token_id": 1, "eos_token_id": 2, "first_k_dense_replace": 0, "n_shared_experts": 2, "q_lora_rank": 1536,
    "routed_scaling_factor": 1.0,
}  # fmt: skip
"""What transformers' DeepseekV2Config takes for a field that is absent."""

TOPK_METHODS = ("greedy", "group_limited_greedy")
"""Ways to choose experts: of all, or of the best groups."""


def read_config(f: Fields) -> ModelConfig:
    """The config of config.json; raises as `config.read`."""
    f.only("scoring_func", "softmax", "this family routes by softmax")
    f.only("moe_layer_freq", 1, "all layers after the dense ones are mixtures of experts")
    if "kv_lora_rank" in f.data and f.data["kv_lora_rank"] is None:
        raise f.fail(
            "kv_lora_rank",
            "null means attention without a latent cache, which DeepZig does not compile",
            "use a model with multi-head latent attention",
        )
    f = f.with_defaults(**DEFAULTS).with_values(norm_topk_prob=False, rope_interleave=True)
    if f.choice("topk_method", TOPK_METHODS, "greedy") == "greedy":
        f = f.with_values(n_group=1, topk_group=1)
    return read(f, mlp_layer_types=first_dense(f), scoring_func="softmax", router_bias=False, group_best=1)
