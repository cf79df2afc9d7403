"""Plain completions and the list of models, as the `openai` client sees them."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from deepzig.runtime import Model

from .conftest import NAME

PROMPTS = ["Once upon a time", "What is 7 plus 5?"]


def ask(client: Any, prompt: Any, **options: Any) -> Any:
    return client.completions.create(**{"model": NAME, "prompt": prompt, "temperature": 0, **options})


@pytest.mark.parametrize("stream", [False, True])
def test_several_prompts_with_several_answers(stream: bool, client: Any, model: Model) -> None:
    options: dict[str, Any] = {"n": 2, "temperature": 0.8, "seed": 5, "max_tokens": 9}
    wanted = [choice for prompt in PROMPTS for choice in model.generate(prompt, **options).choices]
    answer = ask(client, PROMPTS, stream=stream, **options)
    texts = [""] * 4
    for choice in [choice for part in answer for choice in part.choices] if stream else answer.choices:
        texts[choice.index] += choice.text
    assert texts == [choice.text for choice in wanted]


@pytest.mark.parametrize("many", [False, True])
def test_token_ids(many: bool, client: Any, model: Model) -> None:
    tokens = model.encode(PROMPTS[0])
    answer = ask(client, [tokens] if many else tokens)
    assert answer.choices[0].text == model.generate(tokens, max_tokens=16).text
    assert answer.usage.prompt_tokens == len(tokens) and answer.object == "text_completion"


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs(stream: bool, client: Any, model: Model) -> None:
    wanted = model.generate(PROMPTS[0], max_tokens=5, logprobs=True, top_logprobs=2)
    answer = ask(client, PROMPTS[0], max_tokens=5, logprobs=2, stream=stream)
    told = [c.logprobs for part in (answer if stream else [answer]) for c in part.choices if c.logprobs]
    assert wanted.logprobs
    assert [v for one in told for v in one.token_logprobs] == [one.logprob for one in wanted.logprobs]
    tokens = [token for one in told for token in one.tokens]
    assert "".join(tokens) == wanted.text
    assert [at for one in told for at in one.text_offset] == [len("".join(tokens[:i])) for i in range(len(tokens))]
    for one in told:
        assert all(token in top and len(top) in (2, 3) for token, top in zip(one.tokens, one.top_logprobs, strict=True))


def test_usage_of_a_stream(client: Any) -> None:
    parts = list(ask(client, PROMPTS, max_tokens=5, stream=True, stream_options={"include_usage": True}))
    assert parts[-1].choices == [] and parts[-1].usage.completion_tokens == 10


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"suffix": "b"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"prompt": []}, "prompt"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 0, "echo": True, "temperature": 3}, "temperature"),
        ({"extra_body": {"stream_options": {"include_usage": True}}}, "stream_options"),
    ],
)
def test_what_is_not_supported(options: dict[str, Any], param: str, client: Any) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, **{"prompt": "a", **options})
    assert caught.value.param == param


def test_models(client: Any) -> None:
    assert [one.id for one in client.models.list().data] == [NAME]
    assert client.models.retrieve(NAME).owned_by == "deepzig"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("a/b")
    assert caught.value.code == "model_not_found"
    assert "GET /v1/models lists them" in caught.value.message
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="other", prompt="a")
