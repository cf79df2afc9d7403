"""The sampling kernel of GPUs against its meaning."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from deepzig.ir.sampling import sample_tokens
from deepzig.targets.gpu.sample import sample

from ..test_sample import options
from .conftest import GPUS

ROWS = {1: 20, 17: 300, 515: 150, 5003: 40}
"""Vocabulary -> rows that are drawn from."""


def run(gpu: Any, device: str, *given: Any) -> Any:
    """The kernel's tokens for (logits, temperature, top_k, top_p, min_p, seed, position)."""
    tokens = np.full(len(given[0]), 77, np.int32)
    gpu(device)(sample(given[0].shape[1], GPUS[device]))(*given, tokens)
    return tokens


@pytest.mark.parametrize("vocab", ROWS)
@pytest.mark.parametrize("device", GPUS)
def test_it_draws_what_the_meaning_draws(gpu: Any, device: str, vocab: int) -> None:
    """Token for token, with ties, infinities and all filters."""
    given = options(ROWS[vocab], vocab, np.random.default_rng(vocab + 1))
    np.testing.assert_array_equal(run(gpu, device, *given), sample_tokens(*given))
