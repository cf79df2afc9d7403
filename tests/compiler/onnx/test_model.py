"""Exported models against the interpreter: prompts, single tokens, batches with padding, half precision."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from deepzig.models.families import parse_config
from deepzig.models.fields import Fields

from ...golden.make import MODELS
from ...models.folders import config
from ..traced import VARIANTS, random_config
from .sessions import TOLERANCE, Exported, Run, call, distance, export, reference, runtime

KINDS = {
    **{name: config(**{**changes, "num_hidden_layers": 2}) for name, changes in VARIANTS.items()},
    **{name: parse_config(Fields(data, "test")) for name, data in MODELS.items()},
}
"""Switches thrown one by one, and the golden models."""

STEPS = 32


def sequences(model: Exported, lengths: tuple[int, ...], seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, model.source.config.vocab_size, n) for n in lengths]


def step_by_step(run: Run, model: Exported, tokens: np.ndarray, first: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """Logits of all tokens, the first few of which come in one call and the others each in its own."""
    logits, caches = call(run, tokens[None, :first], np.ones((1, first), np.int64), model.empty(1))
    parts = [logits[0]]
    for at in range(first, len(tokens)):
        logits, caches = call(run, tokens[None, at : at + 1], np.ones((1, at + 1), np.int64), caches)
        parts.append(logits[0])
    return np.concatenate(parts), caches


@pytest.mark.parametrize("run", [runtime, reference])
@pytest.mark.parametrize("name", KINDS)
def test_a_prompt_and_single_tokens(name: str, run: Callable[[Path], Run], tmp_path: Path) -> None:
    model = export(tmp_path, KINDS[name])
    (tokens,) = sequences(model, (9 + STEPS,), len(name))
    want, caches = model.oracle(tokens)
    got, kept = step_by_step(run(model.path), model, tokens, 9)
    assert distance(got, want) <= TOLERANCE
    assert all(distance(a[0], b) <= TOLERANCE for a, b in zip(kept, caches, strict=True))


@pytest.mark.parametrize("seed", range(6))
def test_random_sizes(seed: int, tmp_path: Path) -> None:
    model = export(tmp_path, random_config(np.random.default_rng(seed)))
    (tokens,) = sequences(model, (13,), seed)
    want, _ = model.oracle(tokens)
    assert distance(step_by_step(runtime(model.path), model, tokens, 11)[0], want) <= TOLERANCE


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("run", [runtime, reference])
@pytest.mark.parametrize("name", ["base", *MODELS])
def test_padded_batches(name: str, side: str, run: Callable[[Path], Run], tmp_path: Path) -> None:
    """Prompts of 7, 3 and 5 tokens side by side, then four tokens each."""
    model = export(tmp_path, KINDS[name])
    more, prompts = 4, (7, 3, 5)
    texts = sequences(model, tuple(n + more for n in prompts), 3)
    widest = max(prompts)
    tokens = np.full((len(texts), widest), 11)  # padding is any token
    mask = np.zeros((len(texts), widest), np.int64)
    for row, (text, n) in enumerate(zip(texts, prompts, strict=True)):
        place = slice(widest - n, widest) if side == "left" else slice(0, n)
        tokens[row, place], mask[row, place] = text[:n], 1
    execute = run(model.path)
    logits, caches = call(execute, tokens, mask, model.empty(len(texts)))
    rows = [list(logits[row][mask[row] == 1]) for row in range(len(texts))]
    for at in range(more):
        mask = np.concatenate([mask, np.ones_like(mask[:, :1])], 1)
        following = np.array([[text[n + at]] for text, n in zip(texts, prompts, strict=True)])
        logits, caches = call(execute, following, mask, caches)
        assert np.isfinite(logits).all()
        for row, own in enumerate(logits):
            rows[row].append(own[0])
    for row, text in enumerate(texts):
        want, latents = model.oracle(text)
        assert distance(np.array(rows[row]), want) <= TOLERANCE
        assert all(distance(c[row][mask[row] == 1], x) <= TOLERANCE for c, x in zip(caches, latents, strict=True))


def test_a_few_tokens_after_many(tmp_path: Path) -> None:
    """Chunks of a prompt, as speculation and long prompts have them."""
    model = export(tmp_path, KINDS["no-shared"])
    (tokens,) = sequences(model, (17,), 8)
    run, caches, parts = runtime(model.path), model.empty(1), []
    for begin, end in ((0, 6), (6, 7), (7, 12), (12, 17)):
        logits, caches = call(run, tokens[None, begin:end], np.ones((1, end), np.int64), caches)
        parts.append(logits[0])
    assert distance(np.concatenate(parts), model.oracle(tokens)[0]) <= TOLERANCE


@pytest.mark.parametrize(("dtype", "cache"), [("f16", "f32"), ("bf16", "f32"), ("f32", "f16"), ("f16", "f16")])
def test_half_precision(dtype: str, cache: str, tmp_path: Path) -> None:
    """Weights are rounded as the interpreter rounds them; a cached value between two of f16 may become the other."""
    model = export(tmp_path, KINDS["base"], dtype, cache)
    (tokens,) = sequences(model, (15,), 4)
    want, caches = model.oracle(tokens)
    got, kept = step_by_step(runtime(model.path), model, tokens, 10)
    assert [c.dtype for c in kept] == [np.dtype({"f16": np.float16, "f32": np.float32}[cache])] * len(kept)
    allowed = TOLERANCE if cache == "f32" else 2e-3
    assert distance(got, want) <= allowed
    assert all(distance(a[0], b) <= allowed for a, b in zip(kept, caches, strict=True))
