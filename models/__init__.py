"""What DeepSeek-class models are: configs, definitions, checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from deepzig.errors import DeepZigError

from .config import DeepseekV3Config, Fields, parse_deepseek_v3, read_json

FAMILIES: Mapping[str, Callable[[Mapping[str, Any], str], DeepseekV3Config]] = {"deepseek_v3": parse_deepseek_v3}
"""model_type -> reader of the config."""


def parse_config(data: Mapping[str, Any], source: str) -> DeepseekV3Config:
    """The config in the JSON object `data`; `source` is its file, for errors.

    Raises:
        DeepZigError: an unknown family, or a field that is wrong.
    """
    family = str(data.get("model_type"))
    if family not in FAMILIES:
        raise DeepZigError(
            f"model_type {family!r} is not supported", source, f"use a model of {', '.join(sorted(FAMILIES))}"
        )
    return FAMILIES[family](data, source)


def read_config(folder: Path) -> DeepseekV3Config:
    """The config of the checkpoint in `folder`; generation_config.json may name other end tokens.

    Raises:
        DeepZigError: no config, an unknown family, or a field that is wrong.
    """
    path = folder / "config.json"
    config = parse_config(read_json(path), str(path))
    generation = folder / "generation_config.json"
    if generation.is_file():
        fields = Fields(read_json(generation), str(generation))
        ids = fields.ids("eos_token_id") or config.eos_token_ids
        if any(i >= config.vocab_size for i in ids):
            raise fields.fail("eos_token_id", f"a token id is beyond the vocabulary of {config.vocab_size}")
        config = replace(config, eos_token_ids=ids)
    return config


__all__ = ["FAMILIES", "DeepseekV3Config", "parse_config", "read_config"]
