"""What the parameters of a model are for, told by their names in the checkpoint."""

from __future__ import annotations

import re

KINDS: tuple[str, ...] = (
    "embeddings", "attention", "router", "experts", "shared_experts", "dense", "head", "draft", "other",
)  # fmt: skip
"""Every kind: `dense` is a feed-forward network without experts, `draft` the layer for multi-token prediction, `other`
norms outside of attention, and what follows from the config."""

_KIND_OF = (
    (r"\.embed_tokens\.", "embeddings"),
    (r"^lm_head\.|\.shared_head\.head\.", "head"),
    (r"\.self_attn\.", "attention"),
    (r"\.mlp\.gate\.", "router"),
    (r"\.mlp\.experts\.", "experts"),
    (r"\.mlp\.shared_experts\.", "shared_experts"),
    (r"\.mlp\.", "dense"),
)
"""The first that a name has decides."""


def kind_of(name: str) -> str:
    """The kind of a parameter, but for `draft`: that is for whoever knows which graph reads it."""
    return next((kind for pattern, kind in _KIND_OF if re.search(pattern, name)), "other")
