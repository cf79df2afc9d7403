"""Embeddings, as the `openai` client sees them."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from openai import OpenAI

from deepzig.runtime import Model
from deepzig.server import Access

from ..runtime import fake
from .conftest import NAME, serving

TEXTS = [f"The number {7 * at % 41} and a lamp" for at in range(37)]


def test_both_forms_are_the_model_s_own(client: Any, model: Model) -> None:
    wanted = model.embed(TEXTS)
    for form in ("float", "base64", openai.omit):
        answer = client.embeddings.create(model=NAME, input=TEXTS, encoding_format=form)
        got = [one.embedding for one in answer.data]
        if form == "base64":
            got = [np.frombuffer(base64.b64decode(one), "<f4") for one in got]
        assert np.array_equal(np.array(got, np.float32), wanted)  # pages and steps are shared otherwise: the same bits
        assert [one.index for one in answer.data] == list(range(len(TEXTS)))
        assert answer.usage.prompt_tokens == answer.usage.total_tokens == sum(len(model.encode(t)) for t in TEXTS)


def test_token_ids(client: Any, model: Model) -> None:
    [wanted] = model.embed(TEXTS[:1])
    tokens = model.encode(TEXTS[0])
    for given in (TEXTS[0], tokens, [tokens]):
        [one] = client.embeddings.create(model=NAME, input=given, dimensions=len(wanted)).data
        assert np.array_equal(np.array(one.embedding, np.float32), wanted)


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"input": []}, "input"),
        ({"input": [""] * 40 + [3]}, "input"),
        ({"input": [[]]}, "prompt"),
        ({"input": "a", "dimensions": 8}, "dimensions"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format"),
        ({"input": [*TEXTS, "word " * 9000]}, "prompt"),
        ({"input": [[10**9]]}, "prompt"),
    ],
)
def test_what_does_not_fit(options: dict[str, Any], param: str, client: Any) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(**{"model": NAME, **options})
    assert caught.value.param == param


def test_a_model_without_hidden_states(tmp_path: Path) -> None:
    model = fake.model(fake.write_tokenizer(tmp_path), fake.babble(300))
    model.manifest.model["hidden_size"] = 8
    with (
        serving({NAME: model}, Access()) as url,
        OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client,
        pytest.raises(openai.BadRequestError) as caught,
    ):
        client.embeddings.create(model=NAME, input="a")
    assert caught.value.body["message"] == "the artifact gives no hidden states: compile the model with --embeddings"
