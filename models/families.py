"""The families of models: how the config of each is read, and which relatives are known but not supported."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from . import deepseek_v2, deepseek_v3, glm4_moe_lite
from .config import ModelConfig
from .fields import Fields, read_json

FAMILIES: Mapping[str, Callable[[Fields], ModelConfig]] = {
    "deepseek_v2": deepseek_v2.read_config,
    "deepseek_v3": deepseek_v3.read_config,
    "glm4_moe_lite": glm4_moe_lite.read_config,
    "kimi_k2": deepseek_v3.read_config,
}
"""model_type -> reader of the config."""

UNSUPPORTED: Mapping[str, str] = {
    "deepseek_v32": "DeepSeek-V3.2 chooses the positions it attends to by an indexer",
    "deepseek_v4": "DeepSeek-V4 has another attention",
    "deepseek_vl_v2": "DeepSeek-VL2 reads images",
    "glm_moe_dsa": "GLM-5 chooses the positions it attends to by an indexer",
    "kimi_k25": "Kimi-K2.5 reads images; its text model is one part of the checkpoint",
    "kimi_linear": "Kimi-Linear has layers of linear attention",
    "kimi_vl": "Kimi-VL reads images",
    "longcat_flash": "LongCat-Flash has two attentions a layer and experts that do nothing",
    "minicpm3": "MiniCPM3 scales embeddings and residuals",
    "mistral4": "Mistral-4 scales queries by their position",
    "youtu": "Youtu-LLM has no mixture of experts",
}
"""model_type of known relatives -> what they have that is not compiled yet."""


def parse_config(f: Fields) -> ModelConfig:
    """The config in the JSON object `f`.

    Raises:
        DeepZigError: an unknown family, or a field that is missing, wrong or at odds with another.
    """
    name = f.data.get("model_type")
    family = FAMILIES.get(name) if isinstance(name, str) else None
    if family is not None:
        return family(f)
    hint = f"use a model of {', '.join(sorted(FAMILIES))}"
    if isinstance(name, str) and name in UNSUPPORTED:
        raise f.fail("model_type", f"{name} is not supported: {UNSUPPORTED[name]}", hint)
    raise f.fail("model_type", f"the model type {name!r} is unknown", hint)


def read_config(folder: Path) -> ModelConfig:
    """The config of the checkpoint in `folder`; generation_config.json may name other end tokens.

    Raises:
        DeepZigError: no config, or as `parse_config`.
    """
    path = folder / "config.json"
    config = parse_config(Fields(read_json(path), str(path)))
    generation = folder / "generation_config.json"
    if generation.is_file():
        fields = Fields(read_json(generation), str(generation))
        ids = fields.ids("eos_token_id") or config.eos_token_ids
        if any(i >= config.vocab_size for i in ids):
            raise fields.fail("eos_token_id", f"a token id is beyond the vocabulary of {config.vocab_size}")
        config = replace(config, eos_token_ids=ids)
    return config
