"""Write the golden files, by transformers: `.venv/bin/python -P tests/golden/make.py`.

The checkpoints have random weights that numpy alone can make again. A file holds the tokens of a prompt, transformers'
f32 logits of some of its positions, and the tokens that transformers generates after it, greedily.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from deepzig.models.presets import PRESETS, YARN
from deepzig.models.random_checkpoint import write

FOLDER = Path(__file__).parent
PROMPT, GENERATED = 70, 64
"""Tokens whose logits are compared, and tokens generated after them."""

ROWS = (0, 1, 37, 69)
"""Positions whose logits are kept."""

_SMALL: dict[str, Any] = {
    **PRESETS["tiny"],
    "vocab_size": 300,
    "hidden_size": 72,
    "intermediate_size": 90,
    "moe_intermediate_size": 44,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "q_lora_rank": 40,
    "kv_lora_rank": 36,
    "qk_nope_head_dim": 20,
    "qk_rope_head_dim": 12,
    "v_head_dim": 28,
    "rope_scaling": {**YARN, "original_max_position_embeddings": 32},
}

MODELS: dict[str, dict[str, Any]] = {
    "deepseek_v3": _SMALL,
    "deepseek_v2": {
        **_SMALL,
        "model_type": "deepseek_v2",
        "architectures": ["DeepseekV2ForCausalLM"],
        "scoring_func": "softmax",
        "topk_method": "group_limited_greedy",
        "norm_topk_prob": False,
        "q_lora_rank": None,
    },
    "glm4_moe_lite": {
        **_SMALL,
        "model_type": "glm4_moe_lite",
        "architectures": ["Glm4MoeLiteForCausalLM"],
        "n_group": 1,
        "topk_group": 1,
        "v_head_dim": 36,
        "rope_scaling": None,
        "rope_theta": 1000000.0,
        "rms_norm_eps": 1e-5,
    },
}
"""Name of the golden file -> config.json."""


def make_checkpoint(name: str, folder: Path) -> None:
    """Write the f32 checkpoint of a model."""
    write(folder, MODELS[name], seed=sum(name.encode()), dtype="f32")


def main() -> None:
    """Make all files."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_grad_enabled(False)
    for name, config in MODELS.items():
        with tempfile.TemporaryDirectory() as folder:
            make_checkpoint(name, Path(folder))
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
        prompt = torch.from_numpy(np.random.default_rng(len(name)).integers(5, config["vocab_size"], (1, PROMPT)))
        logits = model(prompt).logits[0, list(ROWS)]
        settings = {"max_new_tokens": GENERATED, "min_new_tokens": GENERATED, "do_sample": False, "eos_token_id": None}
        tokens = model.generate(prompt, attention_mask=torch.ones_like(prompt), **settings)[0]
        np.savez_compressed(
            FOLDER / f"{name}.npz",
            prompt=tokens[:PROMPT].numpy().astype(np.int32),
            logits=logits.numpy(),
            generated=tokens[PROMPT:].numpy().astype(np.int32),
        )
        print(f"wrote {FOLDER / name}.npz")


if __name__ == "__main__":
    main()
