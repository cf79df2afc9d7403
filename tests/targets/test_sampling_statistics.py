"""Tokens are drawn as often as the definition of each filter says: chi-square tests of meaning and kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from deepzig.runtime.sampling import SamplingOptions
from deepzig.sampling import sample_tokens
from deepzig.targets.cpu.sample import sample

from .conftest import compile_kernel

VOCAB, DRAWS = 37, 4000
LEAST_P = 1e-4
"""Seeds are fixed, so a test that passes keeps passing; a wrong distribution gives p far below (see the last test)."""

PROMPT, SAID = [3, 3, 8, 11], [5, 8, 8, 8, 20]
CASES: dict[str, dict[str, Any]] = {
    "plain": {"temperature": 1.0},
    "cold": {"temperature": 0.4},
    "hot": {"temperature": 2.0},
    "top-k": {"temperature": 1.3, "top_k": 7},
    "top-p": {"temperature": 1.0, "top_p": 0.8},
    "min-p": {"temperature": 1.5, "min_p": 0.1},
    "all filters": {"temperature": 1.7, "top_k": 20, "top_p": 0.9, "min_p": 0.05},
    "bias": {"temperature": 1.0, "logit_bias": {2: 1.5, 9: -2.0, 30: -100}},
    "penalties": {
        "temperature": 1.0, "repetition_penalty": 1.3, "presence_penalty": 0.7, "frequency_penalty": -0.4
    },
    "all": {
        "temperature": 1.2, "top_k": 25, "top_p": 0.95, "min_p": 0.02, "repetition_penalty": 0.8,
        "presence_penalty": -0.5, "frequency_penalty": 0.3, "logit_bias": {8: 2.0, 0: -1.0},
    },
}  # fmt: skip


def logits() -> Any:
    return np.random.default_rng(12).normal(0, 1.5, VOCAB).astype(np.float32)


def probabilities(options: dict[str, Any]) -> Any:
    """The distribution by the definitions, in f64: edits, temperature, then the filters one after another."""
    z = logits().astype(np.float64)
    for token, bias in options.get("logit_bias", {}).items():
        z[token] += bias
    for token in {*PROMPT, *SAID}:
        z[token] *= options.get("repetition_penalty", 1.0) ** (-1 if z[token] > 0 else 1)
    for token in set(SAID):
        count = SAID.count(token)
        z[token] -= options.get("presence_penalty", 0.0) + count * options.get("frequency_penalty", 0.0)
    p = np.exp((z - z.max()) / options["temperature"])
    best = p.max()
    if k := options.get("top_k"):
        p[np.argsort(-p)[k:]] = 0
    p /= p.sum()
    order = np.argsort(-p)
    before = np.cumsum(p[order]) - p[order]
    p[order[before >= options.get("top_p", 1.0)]] = 0
    p[np.exp((z - z.max()) / options["temperature"]) < options.get("min_p", 0.0) * best] = 0
    return p / p.sum()


def inputs(options: dict[str, Any], seeds: Any, positions: Any) -> tuple[Any, ...]:
    """What the sampler is given for DRAWS draws: logits after the host's edits, and the filters."""
    o = SamplingOptions.parse(options)
    row = logits()
    o.edit(row, PROMPT, SAID)
    filters = ((o.temperature, np.float32), (o.top_k, np.int32), (o.top_p, np.float32), (o.min_p, np.float32))
    return (np.tile(row, (DRAWS, 1)), *(np.full(DRAWS, v, t) for v, t in filters), seeds, positions)


def chi_square(tokens: Any, p: Any) -> float:
    """The probability of a deviation at least as large; tokens expected fewer than 5 times count as one."""
    counts, expected = np.bincount(tokens, minlength=VOCAB).astype(float), p * len(tokens)
    assert not counts[p == 0].any()
    rare = expected < 5
    counts, expected = (np.append(x[~rare], x[rare].sum()) for x in (counts, expected))
    kept = expected > 0
    counts, expected = counts[kept], expected[kept]
    statistic = ((counts - expected) ** 2 / expected).sum()
    half = torch.tensor([(len(counts) - 1) / 2, statistic / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))


@pytest.fixture(scope="module")
def kernel() -> Callable[..., Any]:
    import tvm

    from .conftest import aligned

    executable, name = compile_kernel(sample(VOCAB))

    def run(*given: Any) -> Any:
        tokens = aligned(np.full(len(given[0]), -1, np.int32))
        executable[name](*(tvm.runtime.from_dlpack(aligned(g)) for g in given), tvm.runtime.from_dlpack(tokens))
        return tokens

    return run


def keys(seed: int) -> Any:
    """Keys of choices, and the position of each draw: all positions of a key or all keys at a position."""
    o = SamplingOptions()
    along = np.tile(o.key(seed, 0), (DRAWS, 1)), np.arange(DRAWS, dtype=np.int32)
    across = np.array([o.key(seed, i) for i in range(DRAWS)]), np.full(DRAWS, 17, np.int32)
    return {"positions": along, "choices": across}


@pytest.mark.parametrize("over", ["positions", "choices"])
@pytest.mark.parametrize("name", CASES)
def test_frequencies(name: str, over: str, kernel: Callable[..., Any]) -> None:
    """Over the positions of one answer, and over the choices at one position."""
    given = inputs(CASES[name], *keys(len(name))[over])
    tokens = kernel(*given)
    np.testing.assert_array_equal(tokens, sample_tokens(*given))
    assert chi_square(tokens, probabilities(CASES[name])) > LEAST_P


def test_successive_tokens_are_independent(kernel: Callable[..., Any]) -> None:
    """Pairs of neighbours, in positions and in choices, against the product of their distributions."""
    p = np.full(6, 1 / 6)
    flat = {"temperature": 1.0, "logit_bias": {t: -100 for t in range(6, VOCAB)}}
    for seeds, positions in keys(77).values():
        given = inputs(flat, seeds, positions)
        given[0][:, :6] = 0
        tokens = kernel(*given)
        pairs = np.bincount(tokens[::2] * 6 + tokens[1::2], minlength=36)
        expected = np.outer(p, p).ravel() * len(tokens) / 2
        statistic = ((pairs - expected) ** 2 / expected).sum()
        assert torch.special.gammaincc(torch.tensor(35 / 2), torch.tensor(statistic / 2)) > LEAST_P


@pytest.mark.parametrize(
    ("asked", "wrong"),
    [
        ({"temperature": 1.0}, {"temperature": 1.2}),
        ({"temperature": 1.0, "top_k": 7}, {"temperature": 1.0, "top_k": 8}),
        ({"temperature": 1.0, "top_p": 0.8}, {"temperature": 1.0, "top_p": 0.9}),
        ({"temperature": 1.0, "min_p": 0.1}, {"temperature": 1.0, "min_p": 0.07}),
        (CASES["penalties"], {**CASES["penalties"], "frequency_penalty": -0.1}),
    ],
    ids=str,
)
def test_a_slightly_wrong_distribution_would_be_noticed(asked: Any, wrong: Any, kernel: Callable[..., Any]) -> None:
    tokens = kernel(*inputs(asked, *keys(3)["positions"]))
    p = probabilities(wrong)
    assert np.bincount(tokens, minlength=VOCAB)[p == 0].any() or chi_square(tokens, p) < LEAST_P
