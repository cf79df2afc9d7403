"""The reference model as an artifact: against its training module and transformers, and what speculation changes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from deepzig.compiler.driver import compile_model
from deepzig.compiler.onnx.driver import compile_onnx
from deepzig.compiler.options import Options
from deepzig.models.reference.batches import Encoder
from deepzig.models.reference.corpus import heldout
from deepzig.models.reference.network import Config, Model
from deepzig.models.reference.tokenizer import build
from deepzig.runtime import Model as Artifact
from deepzig.runtime import load

FOLDER = Path(__file__).parents[2] / "models" / "reference"
TOLERANCE = 2e-5
"""f32, norm-relative."""


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Artifact]:
    out = tmp_path_factory.mktemp("reference") / "f32"
    compile_model(FOLDER, out, Options(dtype="f32"))
    with load(out) as model:
        yield model


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Artifact]:
    """The model in onnxruntime."""
    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    compile_onnx(FOLDER, path, Options(dtype="f32", self_check="none"))
    with load(path) as model:
        yield model


@pytest.fixture(scope="module")
def network() -> Model:
    """The training module with the weights of the folder."""
    weights = {name: value.float() for name, value in load_file(FOLDER / "model.safetensors").items()}
    model = Model(Config()).eval()

    def official(name: str) -> torch.Tensor:
        name = name.replace("mtp.", f"layers.{model.c.num_hidden_layers}.")
        name = name if name.startswith("lm_head") else f"model.{name}"
        experts = [f"{name.rpartition('mlp.')[0]}mlp.experts.{e}" for e in range(model.c.n_routed_experts)]
        if name.endswith("mlp.gate_up"):
            return torch.stack(
                [torch.stack([weights[f"{e}.{w}_proj.weight"] for w in ("gate", "up")]) for e in experts]
            )
        if name.endswith("mlp.down"):
            return torch.stack([weights[f"{e}.down_proj.weight"] for e in experts])
        return weights[name.replace("mlp.e_score", "mlp.gate.e_score")]

    model.load_state_dict({name: official(name) for name in model.state_dict()})
    return model


def chats(count: int) -> list[list[int]]:
    encoder = Encoder(build())
    return [encoder.chat([question])[0] for question in heldout(None, count)]


def asked(question: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}]


@torch.no_grad()
def test_logits_and_drafts_are_those_of_the_training_module(artifact: Artifact, network: Model) -> None:
    for tokens in chats(2):
        ids, n = torch.tensor([tokens]), len(tokens)
        mask = torch.ones(n, n).tril().bool()[None, None]
        hidden = network(ids, mask)
        want = network.lm_head(hidden)[0].numpy()
        rows: dict[str, Any] = {
            "tokens": np.array(tokens, np.int32), "seq": np.zeros(n, np.int32), "pos": np.arange(n, dtype=np.int32),
            "block_table": np.arange(-(-n // 64), dtype=np.int32)[None], "out_rows": np.arange(n, dtype=np.int32),
        }  # fmt: skip
        got, states = artifact.backend.call("prefill", rows)
        assert np.linalg.norm(got - want) <= TOLERANCE * np.linalg.norm(want)

        head = network.mtp.predict(hidden[:, :-1], ids[:, 1:], mask[..., :-1, :-1], network.turn[: n - 1])
        want = network.mtp.shared_head.head(head)[0].numpy()
        rows |= {"tokens": rows["tokens"][1:]} | {k: rows[k][:-1] for k in ("seq", "pos", "out_rows")}
        got, _ = artifact.backend.call("draft", {**rows, "hidden": states[:-1]})
        assert np.linalg.norm(got - want) <= TOLERANCE * np.linalg.norm(want)


def test_it_answers(artifact: Artifact) -> None:
    """One question of each easy kind, as a new user would ask."""
    assert artifact.generate(asked("What is 12 plus 30?"), max_tokens=64).text.endswith("42")
    assert artifact.generate(asked("Reverse the word lamp."), max_tokens=64).text == "pmal"
    assert artifact.generate(asked("Which is larger, 41 or 14?"), max_tokens=64).text == "41"


def test_speculation_changes_no_token(artifact: Artifact) -> None:
    guessed = accepted = 0
    for i, question in enumerate(heldout(None, 4)):
        plain = artifact.generate(asked(question.question), max_tokens=96)
        ahead = artifact.generate(asked(question.question), max_tokens=96, speculate=1 + i % 3)
        assert ahead.choices == plain.choices
        if not i % 3:
            guessed, accepted = guessed + ahead.guessed_tokens, accepted + ahead.accepted_tokens
    assert accepted / guessed >= 0.75


def test_an_onnx_export_answers_alike(artifact: Artifact, exported: Artifact) -> None:
    """Greedy, one question of each kind, with equal log-probabilities."""
    for question in heldout(None, 1):
        chat = asked(question.question)
        ours, theirs = (m.generate(chat, max_tokens=96, logprobs=True) for m in (artifact, exported))
        assert (theirs.text, theirs.token_ids, theirs.finish_reason) == (ours.text, ours.token_ids, ours.finish_reason)
        assert theirs.logprobs is not None and ours.logprobs is not None
        pairs = [[p.logprob for p in each] for each in (theirs.logprobs, ours.logprobs)]
        np.testing.assert_allclose(*pairs, rtol=1e-3, atol=2e-5)


@pytest.mark.slow
def test_an_onnx_export_answers_150_questions_alike(artifact: Artifact, exported: Artifact) -> None:
    questions = heldout(None, 12)
    assert len(questions) >= 150
    for question in questions:
        ours, theirs = (m.generate(asked(question.question), max_tokens=96) for m in (artifact, exported))
        assert theirs.choices == ours.choices


@pytest.mark.slow
def test_speculation_changes_no_token_of_500_answers(artifact: Artifact) -> None:
    """Alone, and eight at once, which takes less than two thirds of the steps."""
    questions = [asked(question.question) for question in heldout(None, 36)]
    assert len(questions) >= 500
    steps = []
    for ahead in (0, 1):
        before = artifact.engine.stats().steps
        answers = []
        for at in range(0, len(questions), 8):
            together = [artifact.submit(q, max_tokens=96, speculate=ahead) for q in questions[at : at + 8]]
            answers += [generation.result().choices for generation in together]
        steps.append(artifact.engine.stats().steps - before)
        if not ahead:
            plain = answers
        assert answers == plain
    assert steps[0] >= 1.5 * steps[1]
    for question, want in zip(questions, plain, strict=True):
        assert artifact.generate(question, max_tokens=96, speculate=2).choices == want


@pytest.mark.slow
def test_answers_are_those_of_transformers(artifact: Artifact) -> None:
    import transformers  # its import takes seconds

    peer = transformers.AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)
    for question in heldout(None, 12):
        prompt = artifact.tokenizer.encode_chat(asked(question.question))
        ids = torch.tensor([prompt])
        said = peer.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=96)
        theirs = [t for t in said[0, len(prompt) :].tolist() if t not in artifact.manifest.model["eos_token_ids"]]
        assert list(artifact.generate(prompt, max_tokens=96).token_ids) == theirs


@pytest.mark.slow
def test_every_expert_works(network: Model) -> None:
    """On held-out chats no routed expert has less than a quarter of the mean load or more than four times it."""
    for moe in network.moes():
        moe.load.zero_()
        moe.counted = None
    with torch.no_grad():
        for tokens in chats(20):
            ids, n = torch.tensor([tokens]), len(tokens)
            mask = torch.ones(n, n).tril().bool()[None, None]
            hidden = network(ids, mask)
            network.mtp.predict(hidden[:, :-1], ids[:, 1:], mask[..., :-1, :-1], network.turn[: n - 1])
    for moe in network.moes():
        share = moe.load / moe.load.mean()
        assert share.min() >= 0.25 and share.max() <= 4
