"""What stands in and beside the model for those who run it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deepzig import __version__
from deepzig.artifacts.onnx_file import (
    CONFIG,
    FILES,
    INPUT_IDS,
    LOGITS,
    MASK,
    PAST_LATENT,
    POSITIONS,
    PRESENT_LATENT,
    QUANT,
    VECTORS,
    VERSION,
    file_entry,
)
from deepzig.ir import Module
from deepzig.models.source import Source

GENAI = "genai_config.json"


def metadata(module: Module, source: Source, quant: str | None, files: Sequence[Path]) -> dict[str, str]:
    """The model's `metadata_props`.

    Args:
        module: what is exported.
        source: the model.
        quant: the text of `--quant`.
        files: what lies beside the model: its weights, then self-check vectors if there are any.
    """
    (dtype,) = {
        v.type.dtype for node in module.graphs[0].nodes if node.op.name == "embed" for v in node.inputs[1:] if v
    }
    stored = {"dtype": dtype, "quant": quant, "cache": module.states[0].type.dtype, "cache_width": _width(module)}
    config = {"name": source.name, **stored, **source.config.summary()}
    return {
        VERSION: __version__,
        CONFIG: json.dumps(config, ensure_ascii=False),
        QUANT: quant or "",
        **({VECTORS: files[1].name} if files[1:] else {}),
        FILES: json.dumps({file.name: vars(file_entry(file)) for file in files}),
    }


def side_files(module: Module, model: str, source: Source) -> Mapping[str, Path | bytes]:
    """Name -> file or content, of what is written beside the model: the tokenizer's files and genai_config.json.

    Args:
        module: what is exported.
        model: the name of the model's file.
        source: the model.
    """
    text = json.dumps(_genai(module, model, source), indent=2, ensure_ascii=False) + "\n"
    return {**source.files, GENAI: text.encode()}


def _genai(module: Module, model: str, source: Source) -> dict[str, Any]:
    """The config of onnxruntime-genai, with its names for a cache of one tensor a layer."""
    c = source.config
    eos = list(c.eos_token_ids)
    return {
        "model": {
            "type": "decoder",
            "vocab_size": c.vocab_size,
            "context_length": c.max_position_embeddings,
            "bos_token_id": c.bos_token_id,
            "eos_token_id": eos,
            "pad_token_id": eos[0] if eos else 0,
            "decoder": {
                "filename": model,
                "session_options": {"provider_options": []},
                "hidden_size": c.hidden_size,
                "num_hidden_layers": c.num_hidden_layers,
                "num_attention_heads": c.num_attention_heads,
                "num_key_value_heads": 1,
                "head_size": _width(module),
                "inputs": {
                    "input_ids": INPUT_IDS,
                    "attention_mask": MASK,
                    "position_ids": POSITIONS,
                    "past_names": PAST_LATENT,
                },
                "outputs": {"logits": LOGITS, "present_names": PRESENT_LATENT},
            },
        },
        "search": {"max_length": c.max_position_embeddings, "past_present_share_buffer": False},
    }


def _width(module: Module) -> int:
    """Values a token and layer in the cache."""
    return int(module.states[0].shape[-1])
