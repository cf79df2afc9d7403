"""The layer for multi-token prediction in a checkpoint (DeepSeek-V3 report, section 2.2).

It stands behind the model's last layer. Official checkpoints give it copies of the model's embedding and output head;
others leave those out, and transformers leaves out the whole layer when it saves.
"""

from __future__ import annotations

from .checkpoint import Checkpoint
from .config import ModelConfig
from .tensors import mtp_tensors


def draft_parameters(config: ModelConfig, checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    """Name and shape of the tensors of multi-token prediction that the checkpoint must hold, experts stacked.

    Nothing if the config has no such layer, or the checkpoint nothing of it; copies only if they are there.
    """
    wanted = dict(mtp_tensors(config))
    have = set(checkpoint.names())
    if not any(name.startswith(f"model.layers.{config.num_hidden_layers}.") for name in have):
        return {}
    return {name: shape for name, shape in wanted.items() if name in have or name not in _copies(config)}


def shared_with_model(config: ModelConfig, checkpoint: Checkpoint) -> dict[str, str]:
    """Parameters of the layer -> those of the model that they equal, or stand in for."""
    have = set(checkpoint.names())
    return {copy: own for copy, own in _copies(config).items() if copy not in have or checkpoint.same(copy, own)}


def _copies(config: ModelConfig) -> dict[str, str]:
    """What the layer has copies of."""
    embeddings = "model.embed_tokens.weight"
    head = embeddings if config.tie_word_embeddings else "lm_head.weight"
    first = config.num_hidden_layers
    layers = (f"model.layers.{i}." for i in range(first, first + config.num_nextn_predict_layers))
    return {
        f"{p}{copy}.weight": own
        for p in layers
        for copy, own in (("embed_tokens", embeddings), ("shared_head.head", head))
    }
