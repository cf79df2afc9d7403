"""The whole way, checkpoint to logits, against transformers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deepzig.compiler.driver import compile_model
from deepzig.compiler.options import Options
from deepzig.compiler.trace import Bounds
from deepzig.runtime import Model, load

from . import checkpoints

TOLERANCE = 2e-5
"""f32, norm-relative."""

BOUNDS = Bounds(chunk=96, decode_rows=8, rows=96, batch=8, page_size=16)


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@pytest.fixture(scope="module", params=list(checkpoints.CONFIGS))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Model, Any]]:
    folder = tmp_path_factory.mktemp(request.param)
    seed = list(checkpoints.CONFIGS).index(request.param)
    reference = checkpoints.make(folder / "hf", request.param, seed)
    if seed % 2:
        checkpoints.use_deepseek_spelling(folder / "hf")
    compile_model(folder / "hf", folder / "out", Options(dtype="f32", bounds=BOUNDS))
    with load(folder / "out") as model:
        yield model, reference


def test_logits(pair: tuple[Model, Any]) -> None:
    """Long enough for one whole chunk (un-absorbed), one long tail (un-absorbed) and one short (absorbed)."""
    model, reference = pair
    rng = np.random.default_rng(5)
    for length in (3, 96 + 7, 96 + 41):
        tokens = rng.integers(2, reference.config.vocab_size, length).astype(np.int32)
        assert distance(model.logits(tokens.tolist()), checkpoints.logits(reference, tokens)) <= TOLERANCE


def test_greedy_tokens(pair: tuple[Model, Any]) -> None:
    model, reference = pair
    prompt = np.random.default_rng(6).integers(2, reference.config.vocab_size, 21)
    ours = model.generate(prompt.tolist(), max_tokens=64, temperature=0, ignore_eos=True).token_ids
    config = {"max_new_tokens": 64, "min_new_tokens": 64, "do_sample": False, "eos_token_id": None}
    with torch.no_grad():
        theirs = reference.generate(torch.tensor(prompt[None]), **config)[0, len(prompt) :]
    assert list(ours) == theirs.tolist()


def test_at_once_or_in_pieces(tmp_path: Path) -> None:
    """The cut of a prompt moves its rows between absorbed and un-absorbed attention; logits agree to 1e-5."""
    reference = checkpoints.make(tmp_path / "hf", "odd-sizes", 40)
    tokens = np.random.default_rng(7).integers(2, reference.config.vocab_size, 90).tolist()
    results = []
    for name, chunk in (("once", 96), ("pieces", 16)):
        bounds = Bounds(chunk=chunk, decode_rows=8, rows=96, batch=8, page_size=16)
        compile_model(tmp_path / "hf", tmp_path / name, Options(dtype="f32", bounds=bounds))
        with load(tmp_path / name) as model:
            results.append(model.logits(tokens))
    assert distance(*results) <= 1e-5


@pytest.mark.parametrize(("dtype", "bound"), [("bf16", 1.5e-2), ("f16", 3e-3)])
@pytest.mark.parametrize("config", ["yarn-groups", "no-q-lora", "odd-sizes"])
def test_low_precision_with_the_oracles_routes(config: str, dtype: str, bound: float, tmp_path: Path) -> None:
    """The same rounded weights in f32, and its expert choice forced on the artifact."""
    stored = {"bf16": torch.bfloat16, "f16": torch.float16}[dtype]
    reference = checkpoints.make(tmp_path / "hf", config, 50, stored)
    routes: list[np.ndarray] = []
    hooks = [
        module.register_forward_hook(lambda m, i, out: routes.append(out[2].numpy()))
        for name, module in reference.named_modules()
        if type(module).__name__.endswith("TopkRouter")
    ]
    tokens = np.random.default_rng(8).integers(2, reference.config.vocab_size, 107)
    want = checkpoints.logits(reference, tokens)
    for hook in hooks:
        hook.remove()
    compile_model(tmp_path / "hf", tmp_path / "out", Options(dtype=dtype, bounds=BOUNDS, debug_route=True))
    with load(tmp_path / "out") as model:
        got = model.logits(tokens.tolist(), route=np.stack(routes, 1).astype(np.int32))
    assert distance(got, want) <= bound
