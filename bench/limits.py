"""What the machine's limits allow an artifact: bytes that a case has to read, and operations that it has to do."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from protocol import Case

from deepzig.artifacts.manifest import Manifest
from deepzig.models.config import ModelConfig
from deepzig.models.families import parse_config
from deepzig.models.fields import Fields
from deepzig.models.tensors import tensors
from deepzig.runtime.bench.cases import Prefill, cache_bytes
from deepzig.runtime.bench.results import prefill_flops


def work(manifest: Manifest, config: Mapping[str, Any], case: Case) -> float:
    """Operations of a prefill, or bytes that the steps of a decode read from memory.

    Sequences of a batch share what experts they have in common: of E experts B rows that choose k each, by chance, read
    E (1 - (1 - k/E)^B).

    Raises:
        KeyError: the artifact does not tell its sizes.
    """
    if case.prompt:
        flops = prefill_flops(manifest, Prefill(case.prompt))
        if flops is None:
            raise KeyError("active_params_per_token")
        return flops
    memory = manifest.memory
    chosen = config["num_experts_per_tok"] / config["n_routed_experts"]
    together = 1 - (1 - chosen) ** case.batch
    weights = memory["active_bytes_per_token"] + memory["experts_bytes"] * (together - chosen)
    positions = case.steps * case.depth + case.steps * (case.steps + 1) // 2
    return case.steps * weights + case.batch * positions * cache_bytes(manifest, "decode")


def projected_bytes(manifest: Manifest, whole: Mapping[str, Any], depth: int) -> float:
    """Bytes that a token reads of a whole model whose parameters are stored as those of a part of it, of any kind.

    Args:
        manifest: of the part.
        whole: config.json of the whole model.
        depth: tokens in the cache.
    """
    each = manifest.memory["active_bytes_per_token"] / manifest.memory["active_params_per_token"]
    layers = whole["num_hidden_layers"] / manifest.model["num_hidden_layers"]
    return active_params(parse_config(Fields(dict(whole), "preset"))) * each + depth * layers * cache_bytes(manifest)


def active_params(config: ModelConfig) -> int:
    """Parameters that work on a token: all but the experts that are not chosen, and the embeddings."""

    def share(name: str) -> float:
        if name == "model.embed_tokens.weight":
            return 0.0
        return config.num_experts_per_tok / config.n_routed_experts if ".mlp.experts." in name else 1.0

    return round(sum(math.prod(shape) * share(name) for name, shape in tensors(config)))


def median_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """Of figures of the same turns."""
    return statistics.median(a / b for a, b in zip(numerators, denominators, strict=False))
