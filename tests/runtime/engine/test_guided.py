"""Answers that keep to a structure, beside others that do not."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from deepzig.errors import DeepZigError
from deepzig.runtime.model import Model

from .. import fake

VOCAB = 300
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"enum": ["Ann", "Bo"]},
        "ages": {"type": "array", "items": {"type": "integer"}, "maxItems": 3},
    },
    "required": ["name", "ages"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = fake.write_tokenizer(tmp_path_factory.mktemp("tokenizer"), VOCAB)
    return fake.model(folder, fake.babble(VOCAB), pages=400, batch=8, rows=64, positions=400)


def ask(served: Model, structure: dict[str, Any], **options: Any) -> Any:
    return served.submit("hi", structured_outputs=structure, max_tokens=200, **options)


def test_several_at_once(served: Model) -> None:
    """Different structures, several answers, sampled ones; and who asked for none is not disturbed."""
    free = served.generate("hi", max_tokens=30, ignore_eos=True)
    asked = [
        ask(served, {"json": SCHEMA}, n=3, temperature=1.0, seed=4),
        ask(served, {"choice": ["left", "right"]}, logprobs=True),
        served.submit("hi", max_tokens=30, ignore_eos=True),
        ask(served, {"regex": "[a-f]{3}[0-9]{2}"}, temperature=0.9, seed=2, presence_penalty=0.5, ignore_eos=True),
    ]
    schema, choice, plain, regex = (generation.result() for generation in asked)
    for one in schema.choices:
        jsonschema.validate(json.loads(one.text), SCHEMA)
        assert one.finish_reason == "stop"
    assert choice.text in ("left", "right") and choice.logprobs is not None
    assert re.fullmatch("[a-f]{3}[0-9]{2}", regex.text) and regex.finish_reason == "stop"
    assert plain == free


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "seed": 9}])
def test_guesses_change_nothing(served: Model, options: dict[str, Any]) -> None:
    """What repeats is guessed, and read only as far as the structure allows it."""
    structure = {"json": {"type": "array", "items": {"const": "again and again"}, "minItems": 4, "maxItems": 5}}
    plain = ask(served, structure, **options).result()
    ahead = ask(served, structure, speculate=2, **options).result()
    assert ahead.choices == plain.choices and 0 < ahead.accepted_tokens <= ahead.guessed_tokens
    assert json.loads(plain.text)[:4] == ["again and again"] * 4


def test_what_can_not_be_followed(served: Model) -> None:
    with pytest.raises(DeepZigError, match="the JSON schema can't be used"):
        ask(served, {"json": {"type": "no type"}})
    with pytest.raises(DeepZigError, match="structured_outputs is 7"):
        served.generate("hi", structured_outputs=7)
    assert served.pool.free == served.pool.count


def test_logits_that_are_no_numbers_are_told(tmp_path: Path) -> None:
    folder = fake.write_tokenizer(tmp_path / "tokenizer", VOCAB)
    broken = fake.model(folder, lambda past: np.full(VOCAB, np.nan, np.float32))
    with pytest.raises(DeepZigError, match="logits that are no numbers"):
        broken.generate("hi", structured_outputs={"choice": ["a", "b"]})
