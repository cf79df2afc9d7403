"""The engine on real kernels: not a bit of an answer hangs on who else is served, or on what was found read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from deepzig.runtime import Model, load
from deepzig.runtime.engine import Settings


def asked(rng: np.random.Generator, count: int) -> list[tuple[list[int], dict[str, Any]]]:
    """Prompts, some of which begin alike, some that end in a chunk of few rows; greedy, sampled, penalised, several."""
    common = rng.integers(2, 611, 200).tolist()
    requests = []
    for i in range(count):
        length = int(rng.choice([1, 7, 64, 66, 100, 130, 150]))
        alike = length - int(rng.integers(0, 9)) if i % 2 and length > 9 else 0
        prompt = common[:alike] + rng.integers(2, 611, length - alike).tolist()
        options = {"max_tokens": int(rng.integers(1, 24)), "logprobs": True, "ignore_eos": True, "n": 1 + (i % 6 == 5)}
        if i % 3:
            options |= {"temperature": 0.9, "seed": i, "top_p": 0.95}
        if i % 4 == 1:
            options |= {"repetition_penalty": 1.2}
        if i % 4 == 2:  # three tokens only, so that it repeats itself
            options |= {"logit_bias": {7: 100, 8: 100, 9: 100}, "speculate": 3}
        requests.append((prompt, options))
    return requests


def test_nothing_that_others_do_changes_a_bit(artifact: Path) -> None:
    """Log-probabilities are compared for equality: preempted answers, shared pages, chunks beside answers."""
    requests = asked(np.random.default_rng(7), 24)
    with load(artifact, threads=1, settings=Settings(prefix_reuse=False)) as model:
        alone = [model.generate(prompt, **options) for prompt, options in requests]
    with load(artifact, threads=2, cache_tokens=336, settings=Settings(step_tokens=80)) as model:
        together = [g.result() for g in [model.submit(prompt, **options) for prompt, options in requests]]
        stats = model.engine.stats()
    assert [r.choices for r in together] == [r.choices for r in alone]
    assert stats.preemptions > 0 and stats.cached_tokens > 0 and stats.guessed_tokens > 0
    assert stats.pages_free == stats.pages


def test_prefixes_from_the_disk_have_the_same_bits(artifact: Path, tmp_path: Path) -> None:
    prompt, options = list(range(2, 152)), {"max_tokens": 9, "logprobs": True, "ignore_eos": True}
    with load(artifact) as model:
        want = model.generate(prompt, **options)
        assert model.save_prefix(tmp_path / "prefix") == 144
    with load(artifact) as model:
        assert model.load_prefix(tmp_path / "prefix") == 144
        got = model.generate(prompt, **options)
    assert got.choices == want.choices and (want.cached_tokens, got.cached_tokens) == (0, 144)


def test_embeddings_and_scores(model: Model, artifact: Path) -> None:
    """The output head makes the logits of what is an embedding before it gets length 1; scores are those of logits."""
    texts = [list(range(5, 6 + n)) for n in (0, 63, 64, 140)]
    weights = safetensors.numpy.load_file(artifact.parent / "checkpoint" / "model.safetensors")
    head = weights["lm_head.weight"].astype(np.float64)
    for text, got in zip(texts, model.embed(texts), strict=True):
        assert abs(np.linalg.norm(got) - 1) < 1e-6
        logits = model.logits(text)
        made = head @ got
        scale = np.linalg.norm(logits[-1]) / np.linalg.norm(made)
        assert np.linalg.norm(made * scale - logits[-1]) <= 2e-5 * np.linalg.norm(logits[-1])
        rows = logits.astype(np.float64)
        rows -= rows.max(1, keepdims=True)
        rows -= np.log(np.exp(rows).sum(1, keepdims=True))
        told = [one.logprob for one in model.score(text) if one]
        np.testing.assert_allclose(told, [rows[i, t] for i, t in enumerate(text[1:])], rtol=0, atol=1e-6)
