"""The trained model that stands in models/reference."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from deepzig.models import read_config
from deepzig.models.reference.corpus import TASKS, heldout
from deepzig.models.reference.export import config, tensors
from deepzig.models.reference.network import Config, Model
from deepzig.models.reference.tokenizer import build
from deepzig.tensorfile import read_header

FOLDER = Path(__file__).parents[2] / "models" / "reference"


def test_it_is_small() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir() if path.is_file()) <= 12_000_000


def test_its_files_fit_the_code() -> None:
    assert json.loads((FOLDER / "config.json").read_text()) == config(Config())
    assert json.loads((FOLDER / "tokenizer.json").read_text()) == json.loads(build().to_str())
    assert read_config(FOLDER).num_nextn_predict_layers == 1


def test_it_holds_exactly_the_official_tensors() -> None:
    expected = {name: tuple(value.shape) for name, value in tensors(Model(Config()))}
    assert {e.name: e.shape for e in read_header(FOLDER / "model.safetensors").values()} == expected


def test_the_routers_are_balanced_by_their_biases() -> None:
    """The balance rule has moved every router's biases, and none has run away."""
    weights = load_file(FOLDER / "model.safetensors")
    biases = {name: value for name, value in weights.items() if name.endswith("e_score_correction_bias")}
    assert len(biases) == 4
    for name, bias in biases.items():
        assert 0 < bias.abs().max() < 3, name
        assert len(set(bias.tolist())) > 10, name


@pytest.mark.slow
def test_it_answers() -> None:
    """Held-out questions of every task, decoded by transformers in f32."""
    import transformers  # its import takes seconds

    model = transformers.AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(FOLDER)
    right, questions = 0, heldout(None, 4)
    assert len({q.task for q in questions}) == len(TASKS)
    for question in questions:
        messages = [{"role": "user", "content": question.question}]
        prompt = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        out = model.generate(**prompt, do_sample=False, max_new_tokens=96)
        said = tokenizer.decode(out[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
        right += said == question.answer
    assert right / len(questions) >= 0.85
