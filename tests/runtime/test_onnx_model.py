"""ONNX exports through onnxruntime: the same calls, options and commands as of an artifact."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deepzig.errors import DeepZigError
from deepzig.runtime import Model, load

from . import fake
from .onnx_models import LAYERS, POSITIONS, VOCAB, WIDTH, Expected, write

TOLERANCE = {"f32": 1e-5, "f16": 5e-3}
"""Of logits, relative to their norm: latents are rounded to the type of the cache, and summed."""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("onnx")
    fake.write_tokenizer(folder)
    return write(folder)


@pytest.fixture
def model(path: Path) -> Any:
    with load(path, threads=1) as loaded:
        yield loaded


def tokens(count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(2, VOCAB, count).tolist()


def distance(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_logits_in_chunks(dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepzig.runtime.onnx_model.CHUNK", 24)
    text = tokens(83)
    with load(write(tmp_path, dtype), threads=1) as model:
        assert distance(model.logits(text), Expected().logits(text)) <= TOLERANCE[dtype]


def test_greedy_answers_go_on_with_the_likeliest_token(model: Model) -> None:
    prompt, expected = tokens(9), Expected()
    result = model.generate(prompt, max_tokens=20, ignore_eos=True, logprobs=True)
    text = [*prompt, *result.token_ids]
    rows = expected.logits(text)[len(prompt) - 1 : -1]
    assert list(result.token_ids) == rows.argmax(-1).tolist()
    assert result.logprobs is not None
    want = rows.max(-1) - np.log(np.exp(rows).sum(-1))
    np.testing.assert_allclose([p.logprob for p in result.logprobs], want, rtol=1e-4)


def test_sampled_answers_are_those_of_the_op(model: Model, path: Path) -> None:
    """As drawn by another backend from the same logits."""
    prompt, expected = tokens(5), Expected()
    other = fake.model(path.parent, lambda past: expected.logits(list(past))[-1], VOCAB)
    options: dict[str, Any] = {
        "max_tokens": 16, "temperature": 0.9, "top_k": 40, "top_p": 0.9, "seed": 5, "n": 3, "repetition_penalty": 1.2
    }  # fmt: skip
    answers, others = model.generate(prompt, **options).choices, other.generate(prompt, **options).choices
    assert [a.token_ids for a in answers] == [o.token_ids for o in others]
    assert len({a.token_ids for a in answers}) == 3
    assert [a.text for a in answers] == [o.text for o in others]


def test_pages_that_lie_anywhere(model: Model) -> None:
    """Rows of two sequences in one call, pages in disorder, and positions with a hole between them."""
    a, b = tokens(130, 1), tokens(70, 2)
    table = np.array([[2, 0, 1], [3, 0, 0]])

    def forward(rows: list[tuple[int, int]], wanted: list[int]) -> np.ndarray:
        texts = (a, b)
        given = [texts[s][p] for s, p in rows]
        seq, pos = np.array(rows).T
        return model.forward(np.array(given), seq, pos, table, np.array(wanted, np.int32))

    assert forward([(0, p) for p in range(100)] + [(1, p) for p in range(60)], []).shape == (0, VOCAB)
    forward([(0, p) for p in range(100, 129)], [])
    got = forward([(1, 60), (1, 61), (0, 90), (0, 129)], [3, 0])
    want = np.stack([Expected().logits(a)[129], Expected().logits(b)[60]])
    assert distance(got, want) <= TOLERANCE["f32"]


def test_what_a_model_says_of_itself(model: Model) -> None:
    assert model.manifest.created_by == "deepzig 9.9" and model.manifest.builds == ()
    assert [(spec.dtype, spec.shape[-1]) for spec in model.manifest.cache] == [("f32", WIDTH)] * LAYERS
    assert model.context == POSITIONS
    assert model.generate(tokens(9), speculate=2, max_tokens=5) == model.generate(tokens(9), max_tokens=5)


def test_a_closed_model(path: Path) -> None:
    model = load(path)
    model.close()
    with pytest.raises(DeepZigError) as error:
        model.generate([3], max_tokens=1)
    assert str(error.value) == f"the model is closed\n  at: {path}\n  fix: load it again"
    with pytest.raises(DeepZigError) as error:
        model.logits([3])
    assert str(error.value) == "the model is closed\n  at: forward\n  fix: load it again"


def test_the_commands(cli: Any, path: Path, model: Model) -> None:
    want = model.generate("The quick", max_tokens=6, ignore_eos=True).text
    short = ("--max-tokens", 6, "--ignore-eos", "--threads", 1)
    assert cli("run", path, "The quick", *short) == (0, want + "\n", "")
    told = model.generate([{"role": "user", "content": "hello"}], max_tokens=6, ignore_eos=True).text
    assert cli("chat", path, *short, stdin="hello\n") == (0, told + "\n", "")
    code, out, _ = cli("run", path, "x", *short, "--json", "--temperature", 0.7, "--seed", 3, "--cache-tokens", 64)
    assert code == 0 and len(json.loads(out)["token_ids"]) == 6


def test_devices(cli: Any, path: Path) -> None:
    assert cli("run", path, "x", "--device", "cpu", "--max-tokens", 1)[0] == 0
    assert cli("run", path, "x", "--device", "cuda:1") == (
        2,
        "",
        "error: an ONNX model runs on the CPU only, not on cuda:1\n  at: option device\n"
        "  fix: leave the option out, or compile an artifact for it\n",
    )
