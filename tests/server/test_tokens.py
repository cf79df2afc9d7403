"""`/tokenize` and `/detokenize`."""

from __future__ import annotations

from typing import Any

import pytest

from deepzig.runtime import Model

from .conftest import NAME
from .test_http import http

__all__ = ["http"]

PARTS = [{"type": "text", "text": "Hi"}]
MESSAGES = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": PARTS}]
PLAIN = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]


def tokens(http: Any, **body: Any) -> Any:
    answer = http.post("/tokenize", json={"model": NAME, **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_text(http: Any, model: Model) -> None:
    told = tokens(http, prompt="What is 7 plus 5?", return_token_strs=True)
    wanted = model.encode("What is 7 plus 5?")
    assert told == {
        "count": len(wanted), "max_model_len": model.context, "tokens": wanted,
        "token_strs": [model.tokenizer.written(token) for token in wanted],
    }  # fmt: skip
    assert tokens(http, prompt="a", add_special_tokens=False)["tokens"] == model.tokenizer.encode("a", special=False)


def test_messages(http: Any, model: Model) -> None:
    told = tokens(http, messages=MESSAGES)
    assert told["tokens"] == model.tokenizer.encode_chat(PLAIN) and told["token_strs"] is None
    open_end = tokens(http, messages=MESSAGES, add_generation_prompt=False)["tokens"]
    assert open_end == model.tokenizer.encode_chat(PLAIN, add_generation_prompt=False)


def test_there_and_back(http: Any) -> None:
    text = "What is 7 plus 5? Grüße"
    there = tokens(http, prompt=text)["tokens"]
    assert http.post("/detokenize", json={"tokens": there}).json() == {"prompt": text}


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/tokenize", {}, 400),
        ("/tokenize", {"prompt": "a", "messages": PLAIN}, 400),
        ("/tokenize", {"prompt": ["a"]}, 400),
        ("/tokenize", {"messages": PLAIN, "continue_final_message": True}, 400),
        ("/tokenize", {"model": "other", "prompt": "a"}, 404),
        ("/detokenize", {"tokens": [2**40]}, 400),
        ("/detokenize", {"tokens": [-1]}, 400),
        ("/detokenize", {"tokens": "a"}, 400),
    ],
)
def test_what_does_not_fit(path: str, body: dict[str, Any], status: int, http: Any) -> None:
    answer = http.post(path, json=body)
    assert answer.status_code == status and answer.json()["error"]["message"]
