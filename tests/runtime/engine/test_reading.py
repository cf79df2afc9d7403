"""Texts that are read without an answer: scores, embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from deepzig.artifacts.manifest import TensorSpec
from deepzig.errors import DeepZigError
from deepzig.runtime.model import Model
from deepzig.runtime.sampling import logprob_of

from .. import fake

VOCAB = 300


def hidden_of(past: list[int]) -> np.ndarray:
    return np.random.default_rng(past).normal(0, 5, 7).astype(np.float32)


def seeing() -> Model:
    """A model that gives hidden states, too."""
    served = fake.model(None, fake.babble(VOCAB), pages=60)
    for name in ("prefill", "decode"):
        point = served.manifest.entry_points[name]
        object.__setattr__(point, "outputs", (*point.outputs, TensorSpec("hidden", "f32", ("n", 7))))
    call, backend = served.backend.call, served.backend

    def both(entry: str, inputs: Mapping[str, Any]) -> Any:
        if entry == "sample":
            return call(entry, inputs)
        every = {**inputs, "out_rows": np.arange(len(inputs["tokens"]))}
        pasts: list[list[int]] = []
        backend.logits = lambda past: (pasts.append(list(past)), fake.babble(VOCAB)(past))[1]  # type: ignore[attr-defined]
        logits = call(entry, every)[0]
        return logits[inputs["out_rows"]], np.array([hidden_of(past) for past in pasts])

    backend.call = both  # type: ignore[method-assign]
    return served


@pytest.mark.parametrize("length", [1, 2, 8, 9, 30, 60])
def test_scores(length: int) -> None:
    tokens = np.random.default_rng(length).integers(2, VOCAB, length).tolist()
    served = fake.model(None, fake.babble(VOCAB))
    served.generate([*tokens[:50], 5], max_tokens=2)  # what is known of it must not be left out
    first, *others = served.score(tokens, top_logprobs=3)
    assert first is None and len(others) == length - 1
    for i, got in enumerate(others):
        want = logprob_of(fake.babble(VOCAB)(tokens[: i + 1]), tokens[i + 1], 3)
        assert got == want
    assert served.pool.free == served.pool.count


def test_embeddings_beside_answers() -> None:
    served = seeing()
    texts = [np.random.default_rng(i).integers(2, VOCAB, 1 + 7 * i).tolist() for i in range(6)]
    answers = [served.submit(text, max_tokens=9, ignore_eos=True) for text in texts]
    got = served.embed(texts)
    want = np.array([hidden_of(text) / np.linalg.norm(hidden_of(text)) for text in texts])
    np.testing.assert_allclose(got, want, rtol=1e-6)
    plain = fake.model(None, fake.babble(VOCAB))
    assert [a.result() for a in answers] == [plain.generate(t, max_tokens=9, ignore_eos=True) for t in texts]
    np.testing.assert_array_equal(served.embed(texts[2:3])[0], got[2])
    assert served.pool.free == served.pool.count


def test_what_does_not_fit() -> None:
    served = fake.model(None, fake.babble(VOCAB))
    with pytest.raises(DeepZigError) as caught:
        served.embed([[5]])
    assert str(caught.value) == (
        "the artifact gives no hidden states\n  at: fake\n  fix: compile the model with --embeddings"
    )
    with pytest.raises(DeepZigError, match="embed is given one text"):
        served.embed("hi")
    with pytest.raises(DeepZigError, match="top_logprobs is 21"):
        served.score([5], top_logprobs=21)
    with pytest.raises(DeepZigError, match="the prompt has 61 tokens"):
        served.score([5] * 61)
