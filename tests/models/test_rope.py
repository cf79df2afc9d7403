"""Frequencies and scales against transformers' own functions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3RotaryEmbedding, yarn_apply_mscale

from deepzig.models.families import parse_config
from deepzig.models.fields import Fields
from deepzig.models.rope import RopeConfig

from .folders import DATA

CLAMPED = {"factor": 32.0, "beta_fast": 1, "beta_slow": 1, "original_max_position_embeddings": 4096}


def draw(rng: np.random.Generator) -> tuple[dict[str, Any], int]:
    """A YaRN setting and a RoPE width."""
    settings: dict[str, Any] = {
        "rope_type": "yarn",
        "rope_theta": float(rng.choice([10000.0, 50000.0, 1e6, 317.5])),
        "factor": float(rng.uniform(1, 60)),
        "beta_fast": float(rng.uniform(1, 48)),
        "beta_slow": float(rng.uniform(0.05, 4)),
        "original_max_position_embeddings": int(rng.integers(50, 9000)),
        "truncate": bool(rng.random() < 0.7),
    }
    for name in ("mscale", "mscale_all_dim"):
        if rng.random() < 0.7:
            settings[name] = float(rng.choice([0.0, 0.707, 1.0, rng.uniform(0.1, 2)]))
    if rng.random() < 0.2:
        settings["attention_factor"] = float(rng.uniform(0.5, 2))
    return settings, 2 * int(rng.integers(1, 50))


def both(settings: dict[str, Any], dim: int) -> tuple[RopeConfig, transformers.DeepseekV3Config]:
    sizes = {**DATA, "qk_rope_head_dim": dim, "max_position_embeddings": 163840, "rope_parameters": settings}
    ours = parse_config(Fields(sizes, "config.json")).rope
    return ours, transformers.DeepseekV3Config(**{k: v for k, v in sizes.items() if k != "model_type"})


def ulps(a: np.ndarray, b: np.ndarray) -> int:
    """The greatest distance of positive floats, in units of the last place."""
    return int(np.abs(a.view(np.int32).astype(np.int64) - b.view(np.int32)).max())


def agree(settings: dict[str, Any], dim: int, bound: int = 2) -> None:
    """To the last bits: an f32 power of torch, then a division and a blend, is 2 units from the exact one rounded."""
    ours, theirs = both(settings, dim)
    freq, scale = ROPE_INIT_FUNCTIONS["yarn"](theirs, torch.device("cpu"))
    assert freq.dtype == torch.float32 and (freq > 0).all()
    assert ulps(ours.inv_freq(dim), freq.numpy()) <= bound
    assert ours.cos_sin_scale == scale
    width = DATA["qk_nope_head_dim"] + dim
    assert ours.softmax_scale(width) == pytest.approx(yarn_apply_mscale(theirs.rope_parameters, width**-0.5), rel=1e-15)


@pytest.mark.parametrize("seed", range(60))
def test_random_yarn(seed: int) -> None:
    agree(*draw(np.random.default_rng(seed)))


@pytest.mark.parametrize("factor", [32, 40])
def test_the_published_settings(factor: int) -> None:
    """Kimi-K2 and DeepSeek-V3."""
    shared = {"rope_type": "yarn", "original_max_position_embeddings": 4096, "mscale": 1.0, "mscale_all_dim": 1.0}
    agree({**shared, "rope_theta": 50000.0 if factor == 32 else 10000.0, "factor": factor}, 64, bound=1)


@pytest.mark.parametrize("dim", [2, 6, 64])
@pytest.mark.parametrize("theta", [50000.0, 1.5])
def test_both_bounds_on_one_dimension(dim: int, theta: float) -> None:
    """Kimi-K2 has beta_fast = beta_slow; with a small theta both bounds lie beyond the last dimension."""
    agree({"rope_type": "yarn", "rope_theta": theta, **CLAMPED}, dim)


@pytest.mark.parametrize("dim", [6, 64])
def test_without_yarn(dim: int) -> None:
    ours, theirs = both({"rope_type": "default", "rope_theta": 31337.0}, dim)
    freq, scale = DeepseekV3RotaryEmbedding.compute_default_rope_parameters(theirs)
    assert ulps(ours.inv_freq(dim), freq.numpy()) <= 1
    assert (ours.cos_sin_scale, scale) == (1.0, 1.0)
    assert ours.softmax_scale(192) == 192**-0.5


@pytest.mark.parametrize(("factor", "mscale", "squared"), [(40, 1.0, 1.8739), (40, 0.707, 1.5896), (32, 1.0, 1.8133)])
def test_published_scales(factor: float, mscale: float, squared: float) -> None:
    """DeepSeek-V3, DeepSeek-V2 and Kimi-K2."""
    rope = RopeConfig(kind="yarn", factor=factor, mscale=mscale, mscale_all_dim=mscale)
    assert rope.softmax_scale(192) * 192**0.5 == pytest.approx(squared, abs=5e-5)
    assert rope.cos_sin_scale == 1.0
