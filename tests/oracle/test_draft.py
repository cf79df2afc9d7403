"""The layer for multi-token prediction against one made of transformers' parts; speculation changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3RMSNorm

from deepzig.compiler.driver import compile_model
from deepzig.compiler.options import Options
from deepzig.compiler.trace import Bounds
from deepzig.runtime import Model, load

from . import checkpoints

TOLERANCE = 2e-5
"""f32, norm-relative."""

BOUNDS = Bounds(chunk=64, decode_rows=8, rows=64, batch=4, page_size=16)
LAYER = checkpoints.BASE["num_hidden_layers"]


class Reference:
    """A model of one layer more, whose last is the prediction's; its output head is the model's own, or another."""

    def __init__(self, folder: Path, copies: str) -> None:
        checkpoints.CONFIGS["draft"] = {"num_hidden_layers": LAYER + 1}
        self.model = checkpoints.make(folder, "draft", 90)
        del checkpoints.CONFIGS["draft"]
        self.layer = self.model.model.layers[LAYER]
        self.model.model.layers = self.model.model.layers[:LAYER]
        size, vocab = self.model.config.hidden_size, self.model.config.vocab_size
        generator = torch.Generator().manual_seed(91)
        draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
        own = {
            "embed_tokens": self.model.model.embed_tokens.weight.detach(),
            "shared_head.head": self.model.lm_head.weight.detach(),
        }
        other = {"embed_tokens": draw(vocab, size), "shared_head.head": draw(vocab, size) / size**0.5}
        self.weights = {
            "enorm": 1 + 0.1 * draw(size), "hnorm": 1 + 0.1 * draw(size), "shared_head.norm": 1 + 0.1 * draw(size),
            "eh_proj": draw(size, 2 * size) / (2 * size) ** 0.5,
            **(other if copies == "different" else own),
        }  # fmt: skip
        stored = load_file(folder / "model.safetensors")
        for name, weight in self.weights.items():
            if copies != "absent" or name not in own:
                stored[f"model.layers.{LAYER}.{name}.weight"] = weight.clone()
        save_file(stored, folder / "model.safetensors", {"format": "pt"})
        changes = {"num_hidden_layers": LAYER, "num_nextn_predict_layers": 1}
        checkpoints.edit_config(folder, lambda data: {**data, **changes})

    def norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        norm = DeepseekV3RMSNorm(x.shape[-1], self.model.config.rms_norm_eps)
        norm.weight.data = self.weights[name]
        result: torch.Tensor = norm(x)
        return result

    @torch.no_grad()
    def draft(self, tokens: np.ndarray) -> np.ndarray:
        """Logits [n - 1, vocab]: row i guesses token i + 2 from tokens up to i + 1."""
        ids = torch.tensor(tokens[None].astype(np.int64))
        hidden = self.model.model(ids).last_hidden_state[:, :-1]
        token = torch.nn.functional.embedding(ids[:, 1:], self.weights["embed_tokens"])
        both = torch.cat([self.norm("enorm", token), self.norm("hnorm", hidden)], -1)
        h = both @ self.weights["eh_proj"].T
        positions = torch.arange(h.shape[1])[None]
        mask = torch.full((1, 1, h.shape[1], h.shape[1]), float("-inf")).triu(1)
        h = self.layer(
            h,
            attention_mask=mask,
            position_ids=positions,
            position_embeddings=self.model.model.rotary_emb(h, positions),
        )
        logits: np.ndarray = (self.norm("shared_head.norm", h) @ self.weights["shared_head.head"].T)[0].numpy()
        return logits


@pytest.fixture(scope="module", params=["different", "equal", "absent"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Model, Reference]]:
    folder = tmp_path_factory.mktemp("draft")
    reference = Reference(folder / "hf", request.param)
    compile_model(folder / "hf", folder / "out", Options(dtype="f32", bounds=BOUNDS))
    with load(folder / "out") as model:
        yield model, reference


def test_draft_logits(pair: tuple[Model, Reference]) -> None:
    model, reference = pair
    rng = np.random.default_rng(92)
    tokens = rng.integers(2, reference.model.config.vocab_size, 40).astype(np.int32)
    rows = {
        "tokens": tokens, "seq": np.zeros(40, np.int32), "pos": np.arange(40, dtype=np.int32),
        "block_table": np.array([[2, 0, 1]], np.int32), "out_rows": np.arange(40, dtype=np.int32),
    }  # fmt: skip
    _, hidden = model.backend.call("prefill", rows)
    rows |= {"tokens": tokens[1:], "seq": rows["seq"][1:], "pos": rows["pos"][:-1], "out_rows": rows["out_rows"][:-1]}
    got, _ = model.backend.call("draft", {**rows, "hidden": hidden[:-1]})
    want = reference.draft(tokens)
    assert np.linalg.norm(got - want) <= TOLERANCE * np.linalg.norm(want)


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "seed": 5, "top_p": 0.9, "frequency_penalty": 0.5}])
def test_speculation_changes_nothing(pair: tuple[Model, Reference], options: dict[str, Any]) -> None:
    model, _ = pair
    rng = np.random.default_rng(93)
    for length, count in ((1, 1), (9, 2), (64, 3), (65, 5), (130, 7)):
        prompt = rng.integers(2, 300, length).tolist()
        plain = model.generate(prompt, max_tokens=40, logprobs=True, n=2, **options)
        ahead = model.generate(prompt, max_tokens=40, logprobs=True, n=2, speculate=count, **options)
        assert ahead.choices == plain.choices
        assert ahead.guessed_tokens >= 39 and 0 <= ahead.accepted_tokens <= ahead.guessed_tokens
        assert plain.guessed_tokens == 0


def test_the_copies_are_shared_where_equal(pair: tuple[Model, Reference], request: pytest.FixtureRequest) -> None:
    model, _ = pair
    weights = {w.name for w in model.manifest.weights if f"model.layers.{LAYER}." in w.name}
    copies = {w for w in weights if "embed_tokens" in w or "shared_head.head" in w}
    assert len(copies) == (2 if "different" in request.node.name else 0) and weights
