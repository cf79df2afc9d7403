"""The reference model's network, optimizer, packing and export; all against slower or independent forms."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import pytest
import torch

from deepzig.models import read_config
from deepzig.models.reference.batches import LENGTH, Encoder
from deepzig.models.reference.corpus import training
from deepzig.models.reference.evaluate import evaluate, expert_loads
from deepzig.models.reference.export import export
from deepzig.models.reference.muon import orthogonal
from deepzig.models.reference.network import Config, Experts, Model
from deepzig.models.reference.tokenizer import build
from deepzig.models.reference.train import balance
from deepzig.models.tensors import one_by_one, tensors
from deepzig.tensorfile import read_header


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(build())


@pytest.fixture(scope="module")
def model() -> Model:
    """Random weights that show: no head of zeros, no norm of ones, no router without bias."""
    torch.manual_seed(11)
    model = Model(Config())
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.normal_(1, 0.1)
            if "head" in name and "norm" not in name:
                weight.normal_(0, 0.1)
            weight.copy_(weight.bfloat16())
        for moe in model.moes():
            moe.e_score_correction_bias.normal_(0, 0.1)
    return model


def test_experts_equal_autograd() -> None:
    torch.manual_seed(2)
    x, gate_up, down = (
        torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((37, 10), (7, 2, 6, 10), (7, 10, 6))
    )
    ids = torch.rand(37, 6).topk(3).indices  # expert 6 stays idle
    hidden = torch.einsum("nh,nkcih->nkci", x, gate_up[ids])
    active = torch.nn.functional.silu(hidden[:, :, 0]) * hidden[:, :, 1]
    right = torch.einsum("nki,nkhi->nkh", active, down[ids])
    found = Experts.apply(x, gate_up, down, ids)
    torch.testing.assert_close(found, right, rtol=1e-12, atol=1e-12)
    toward = torch.randn_like(right)
    for a, b in zip(
        torch.autograd.grad(found, (x, gate_up, down), toward),
        torch.autograd.grad(right, (x, gate_up, down), toward),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("shape", [(33, 33), (5, 21, 48), (2, 3, 48, 21)])
def test_muon_makes_singular_values_even(shape: tuple[int, ...]) -> None:
    torch.manual_seed(3)
    values = torch.linalg.svdvals(orthogonal(torch.randn(shape) * 37))
    assert values.min() > 0.5 and values.max() < 1.3


def test_packed_chats_are_blind_to_one_another(model: Model, encoder: Encoder) -> None:
    chats = [encoder.chat([question]) for question in islice(training(5), 3)]
    packed = encoder.pack(chats)
    first, second = len(chats[0][0]), len(chats[1][0])
    alone = encoder.pack(chats[1:2])
    with torch.no_grad():
        together = model(packed.tokens, packed.mask)[0, first : first + second]
        torch.testing.assert_close(together, model(alone.tokens, alone.mask)[0, :second], rtol=1e-4, atol=1e-4)


def test_packing_keeps_chats_whole(encoder: Encoder) -> None:
    batch = encoder.training_batch(13, rows=9)
    assert batch.tokens.shape == (9, LENGTH)
    assert (batch.tokens[:, 0] == encoder.bos).all()
    assert torch.equal(batch.real, batch.tokens != encoder.pad)
    assert batch.real.float().mean() > 0.7
    ends = batch.real & ~torch.cat((batch.real[:, 1:], torch.zeros(9, 1, dtype=torch.bool)), 1)
    assert (batch.tokens[ends] == encoder.eos).all()
    assert (batch.answered & (batch.tokens == encoder.eos)).sum() == (batch.tokens == encoder.eos).sum()
    assert torch.equal(batch.tokens, encoder.training_batch(13, rows=9).tokens)


def test_evaluation_leaves_no_mark(model: Model, encoder: Encoder) -> None:
    """Tokens of other shapes go through afterwards, and no load is left for `balance`."""
    scores = evaluate(model, encoder, count=3)
    assert scores["exact"] == 0 and len(scores["load"]) == 4
    assert all(moe.load.sum() == 0 for moe in model.moes())
    expert_loads(model, encoder)
    tokens = torch.arange(11)[None]
    assert model(tokens, torch.ones(11, 11).tril().bool()[None, None]).shape == (1, 11, 128)


def test_balance_lifts_idle_experts() -> None:
    model = Model(Config())
    moe = model.moes()[1]
    moe.load.fill_(5)
    moe.load[3], moe.load[8] = 1, 9
    balance(model, 0.25)
    bias = moe.e_score_correction_bias
    assert (bias[3], bias[8], bias[4]) == (0.25, -0.25, 0) and moe.load.sum() == 0


@pytest.fixture(scope="module")
def folder(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reference")
    export(model, path)
    return path


def test_the_folder_holds_the_official_tensors(folder: Path) -> None:
    config = read_config(folder)
    expected = dict(one_by_one(tensors(config)))
    header = read_header(folder / "model.safetensors")
    assert {name: entry.shape for name, entry in header.items()} == expected
    assert all(e.dtype == ("F32" if e.name.endswith("correction_bias") else "BF16") for e in header.values())


def test_the_folder_is_small_and_complete(folder: Path) -> None:
    files = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert files.keys() == {
        *("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    }
    assert sum(files.values()) <= 12_000_000
    config = json.loads((folder / "config.json").read_text())
    assert config["n_group"] >= 2 and config["topk_group"] < config["n_group"] and config["q_lora_rank"]


@pytest.mark.slow
def test_transformers_says_the_same(model: Model, encoder: Encoder, folder: Path) -> None:
    """Relative to the largest logit: f32 rounding, since sums run in another order."""
    import transformers  # its import takes seconds

    peer = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for question in islice(training(17), 5):
        tokens = torch.tensor([encoder.chat([question])[0]])
        mask = torch.ones(tokens.shape[1], tokens.shape[1]).tril().bool()[None, None]
        with torch.no_grad():
            ours, theirs = model.lm_head(model(tokens, mask)), peer(tokens).logits
        assert (ours - theirs).abs().max() / theirs.abs().max() < 1e-5
