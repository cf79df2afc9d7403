"""Random models for tests of passes and lowering: config, trace, parameters, rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from deepzig.compiler.trace import Bounds, trace
from deepzig.ir import Module
from deepzig.ir.interpret import round_to
from deepzig.models import ModelConfig
from deepzig.models.families import parse_config
from deepzig.models.fields import Fields

Array = npt.NDArray[Any]

BOUNDS = Bounds(chunk=96, decode_rows=8, rows=24, batch=4, page_size=4)
PAGES = 11

BASE: dict[str, Any] = {
    "model_type": "deepseek_v3",
    "vocab_size": 67,
    "hidden_size": 48,
    "intermediate_size": 70,
    "moe_intermediate_size": 20,
    "num_hidden_layers": 3,
    "first_k_dense_replace": 1,
    "num_attention_heads": 3,
    "q_lora_rank": 24,
    "kv_lora_rank": 20,
    "qk_nope_head_dim": 10,
    "qk_rope_head_dim": 6,
    "v_head_dim": 14,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "n_shared_experts": 2,
    "rms_norm_eps": 1e-5,
    "attention_bias": True,
    "max_position_embeddings": 512,
}

VARIANTS: dict[str, dict[str, Any]] = {
    "base": {},
    "no-q-lora": {"q_lora_rank": None, "attention_bias": False},
    "one-group": {"n_group": 1, "topk_group": 1, "norm_topk_prob": False},
    "no-shared": {"n_shared_experts": 0, "rope_interleave": False},
    "softmax": {"model_type": "deepseek_v2", "topk_method": "group_limited_greedy"},
}


def config(**changes: Any) -> ModelConfig:
    """The base config with some fields changed."""
    return parse_config(Fields({**BASE, **changes}, "test"))


def random_config(rng: np.random.Generator) -> ModelConfig:
    """A config with every size drawn, odd ones too, and every switch thrown."""
    size = lambda low, high: int(rng.integers(low, high))  # noqa: E731
    groups = size(1, 4)
    family = str(rng.choice(["deepseek_v2", "deepseek_v3", "glm4_moe_lite"]))
    return config(
        model_type=family,
        topk_method=str(rng.choice(["greedy", "group_limited_greedy"])) if family == "deepseek_v2" else None,
        hidden_size=size(9, 40),
        intermediate_size=size(5, 50),
        moe_intermediate_size=size(3, 20),
        num_hidden_layers=2,
        num_attention_heads=size(1, 5),
        q_lora_rank=None if rng.random() < 0.3 else size(3, 30),
        kv_lora_rank=size(3, 30),
        qk_nope_head_dim=size(1, 20),
        qk_rope_head_dim=2 * size(1, 6),
        v_head_dim=size(1, 20),
        n_routed_experts=groups * size(2, 5),
        num_experts_per_tok=size(1, 3),
        n_group=groups,
        topk_group=size(1, groups + 1),
        n_shared_experts=size(0, 3),
        norm_topk_prob=bool(rng.random() < 0.5),
        attention_bias=bool(rng.random() < 0.5),
        rope_interleave=bool(rng.random() < 0.5),
        tie_word_embeddings=bool(rng.random() < 0.5),
    )


def parameters(module: Module, rng: np.random.Generator) -> dict[str, Array]:
    """Values for all parameters, rounded to their types; constants left out."""
    values = {}
    for p in module.params:
        if p.name not in module.constants:
            spread = 1.0 if len(p.shape) == 1 else float(p.shape[-1]) ** -0.5  # type: ignore[arg-type]
            values[p.name] = round_to(rng.standard_normal(tuple(map(int, p.shape))) * spread, p.type.dtype)
    return values


def states(module: Module, rng: np.random.Generator) -> dict[str, Array]:
    """Caches full of old rows."""
    shapes = {s.name: tuple(PAGES if d == "pages" else int(d) for d in s.shape) for s in module.states}
    return {s.name: round_to(rng.standard_normal(shapes[s.name]), s.type.dtype) for s in module.states}


def rows(c: ModelConfig, rng: np.random.Generator, route: bool = False) -> dict[str, Array]:
    """Ragged rows of three sequences at different positions, on scattered pages."""
    starts, counts = (5, 0, 2), (3, 4, 1)
    n = sum(counts)
    inputs = {
        "tokens": rng.integers(0, c.vocab_size, n),
        "seq": np.repeat(np.arange(3), counts),
        "pos": np.concatenate([np.arange(s, s + k) for s, k in zip(starts, counts, strict=True)]),
        "block_table": rng.permutation(PAGES)[:9].reshape(3, 3),
        "out_rows": np.array([2, 6, 7, 0]),
    }
    inputs = {name: value.astype(np.int32) for name, value in inputs.items()}
    inputs["hidden"] = rng.standard_normal((n, c.hidden_size), np.float32)
    if route:
        layers = sum(map(c.is_moe, range(c.num_hidden_layers)))
        draws = [rng.permutation(c.n_routed_experts)[: c.num_experts_per_tok] for _ in range(n * layers)]
        inputs["route"] = np.array(draws, np.int32).reshape(n, layers, -1)
    return inputs


def distance(a: Array, b: Array) -> float:
    """Norm-relative difference."""
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def traced(c: ModelConfig, dtype: str = "f32", route: bool = False, draft: bool = False) -> Module:
    """The traced module."""
    return trace(c, dtype, BOUNDS, route, draft)
