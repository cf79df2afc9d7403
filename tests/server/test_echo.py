"""Prompts that are told again with their log-probabilities, as harnesses for evaluation ask for them."""

from __future__ import annotations

from typing import Any

import pytest

from deepzig.runtime import Model

from .conftest import NAME

PROMPTS = ["What is 7 plus 5?", "Once upon a time there was a lamp"]


def ask(client: Any, prompt: Any, **options: Any) -> Any:
    return client.completions.create(**{"model": NAME, "prompt": prompt, "temperature": 0, "echo": True, **options})


def merged(answer: Any, stream: bool, count: int) -> tuple[list[str], list[dict[str, list[Any]]]]:
    texts, logprobs = [""] * count, [dict[str, list[Any]]() for _ in range(count)]
    for part in answer if stream else [answer]:
        for choice in part.choices:
            texts[choice.index] += choice.text
            for name, values in (choice.logprobs.model_dump() if choice.logprobs else {}).items():
                logprobs[choice.index].setdefault(name, []).extend(values)
    return texts, logprobs


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("most", [0, 5])
def test_prompts_are_told_again(most: int, stream: bool, client: Any, model: Model) -> None:
    answer = ask(client, PROMPTS, max_tokens=most, n=2, logprobs=2, stream=stream, seed=1, temperature=0.9)
    texts, logprobs = merged(answer, stream, 4)
    for number, prompt in enumerate(PROMPTS):
        made = [choice.text for choice in model.generate(prompt, max_tokens=5, n=2, seed=1, temperature=0.9).choices]
        assert texts[2 * number : 2 * number + 2] == [prompt + (text if most else "") for text in made]
        tokens, wanted = model.encode(prompt), model.score(prompt, top_logprobs=2)
        for told in logprobs[2 * number : 2 * number + 2]:
            assert len({len(values) for values in told.values()}) == 1
            assert told["token_logprobs"][: len(tokens)] == [one and one.logprob for one in wanted]
            assert told["top_logprobs"][0] is None
            assert "".join(told["tokens"]) .startswith(model.tokenizer.decode(tokens, skip_special=False))
            assert told["text_offset"] == [len("".join(told["tokens"][:at])) for at in range(len(told["tokens"]))]
    usage = None if stream else answer.usage
    if usage:
        assert usage.prompt_tokens == sum(len(model.encode(prompt)) for prompt in PROMPTS)


def test_as_a_harness_scores_a_continuation(client: Any, model: Model) -> None:
    """lm-eval's `local-completions`: token ids, one more token, whose entry it takes away from the end."""
    context, continuation = model.encode(PROMPTS[0]), model.encode(" 12", )
    for tokens in (context + continuation, context + list(model.generate(context, max_tokens=2).token_ids)):
        choice = ask(client, [tokens], max_tokens=1, logprobs=1, seed=1234).choices[0]
        told = choice.logprobs.token_logprobs[len(context) : -1]
        top = choice.logprobs.top_logprobs[len(context) : -1]
        wanted = model.score(tokens, top_logprobs=1)[len(context) :]
        assert told == [one.logprob for one in wanted if one]
        greedy = all(value == max(likely.values()) for value, likely in zip(told, top, strict=True))
        assert greedy == all(one.token_id == one.top[0][0] for one in wanted if one)


def test_an_end_token_has_its_entry(client: Any, model: Model) -> None:
    """Else the harness would take the last token of the prompt for the one that was made."""
    prompt = model.tokenizer.encode_chat([{"role": "user", "content": "What is 12 plus 30?"}])
    ended = [*prompt, *model.generate(prompt).token_ids]
    answer = ask(client, [ended], max_tokens=1, logprobs=1)
    told = answer.choices[0]
    assert told.finish_reason == "stop" and answer.usage.completion_tokens == 0
    assert len(told.logprobs.token_logprobs) == len(ended) + 1


def test_without_log_probabilities(client: Any, model: Model) -> None:
    choice = ask(client, PROMPTS[0], max_tokens=3).choices[0]
    assert choice.text == PROMPTS[0] + model.generate(PROMPTS[0], max_tokens=3).text and choice.logprobs is None
    choice = ask(client, model.encode(PROMPTS[0]), max_tokens=0).choices[0]
    assert choice.text == model.tokenizer.decode(model.encode(PROMPTS[0]), skip_special=False)
    assert (choice.finish_reason, choice.logprobs) == ("length", None)
