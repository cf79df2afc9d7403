"""Write a training checkpoint as a Hugging Face folder, named as in DeepSeek's own checkpoints.

python -P -m deepzig.models.reference.export build/reference/checkpoint.pt models/reference
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from .network import Config, Model
from .tokenizer import BOS, EOS, PAD, build, save

POSITIONS = 1024
"""Positions that the config allows; training saw 128, and RoPE is relative."""


def tensors(model: Model) -> Iterator[tuple[str, Tensor]]:
    """Every tensor under its official name: experts one by one, the MTP layer after the last layer.

    All bf16 but the routers' biases, which are f32.
    """
    for name, value in model.state_dict().items():
        official = name.replace("mtp.", f"layers.{model.c.num_hidden_layers}.")
        official = official if official.startswith("lm_head") else f"model.{official}"
        prefix = official.rpartition("mlp.")[0] + "mlp.experts"
        if name.endswith("mlp.gate_up"):
            for e, (gate, up) in enumerate(value):
                yield f"{prefix}.{e}.gate_proj.weight", gate.bfloat16()
                yield f"{prefix}.{e}.up_proj.weight", up.bfloat16()
        elif name.endswith("mlp.down"):
            yield from ((f"{prefix}.{e}.down_proj.weight", down.bfloat16()) for e, down in enumerate(value))
        elif name.endswith("e_score_correction_bias"):
            yield official.replace("mlp.", "mlp.gate."), value.float()
        else:
            yield official, value.bfloat16()


def config(c: Config) -> dict[str, Any]:
    """The object of config.json, with the keys of DeepSeek-V3's own."""
    tokenizer = build()
    return {
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        **asdict(c),
        "num_key_value_heads": c.num_attention_heads,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "max_position_embeddings": POSITIONS,
        "moe_layer_freq": 1,
        "norm_topk_prob": True,
        "rope_scaling": None,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "bos_token_id": tokenizer.token_to_id(BOS),
        "eos_token_id": tokenizer.token_to_id(EOS),
        "pad_token_id": tokenizer.token_to_id(PAD),
    }


def export(model: Model, folder: Path) -> None:
    """Write weights, configs and tokenizer into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.contiguous() for name, value in tensors(model)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    data = config(model.c)
    write_json(folder / "config.json", data)
    special = {key: data[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    write_json(folder / "generation_config.json", {**special, "do_sample": False, "max_new_tokens": 128})
    save(folder)


def write_json(path: Path, data: dict[str, Any]) -> None:
    """As Hugging Face writes it."""
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n")


def load(checkpoint: Path, rounded: bool = True) -> Model:
    """The model of a training checkpoint, its weights rounded to bf16 as they are stored, if asked."""
    model = Model(Config())
    model.load_state_dict(torch.load(checkpoint)["model"])
    if rounded:
        with torch.no_grad():
            for weight in model.parameters():
                weight.copy_(weight.bfloat16())
    return model


def main() -> None:
    """Export one checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    export(load(arguments.checkpoint), arguments.folder)


if __name__ == "__main__":
    main()
