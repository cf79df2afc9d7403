"""The document of the API: what it allows is answered, what it forbids is refused, and answers are what it says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, seed, settings
from pydantic import BaseModel
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from deepzig.server import Access, Catalogue, create_app
from deepzig.server.keys import Keyring
from deepzig.server.schemas import ChatCompletion, Completion, EmbeddingList, ModelCard, ResponseObject, TokenList

from ..runtime import fake
from .conftest import KEY, NAME, key_of
from .test_http import http

__all__ = ["http"]

VOCAB = 300
HEADERS = {"Authorization": f"Bearer {KEY}"}
NOT_CHECKED = [positive_data_acceptance]
"""Fields may each fit and not go together, and schemas of answers ask for more than a grammar can hold."""

PATHS = [
    ("GET", "/"),
    ("GET", "/health"),
    ("GET", "/metrics"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{name}"),
    ("POST", "/detokenize"),
    ("POST", "/tokenize"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/embeddings"),
    ("POST", "/v1/responses"),
]


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = fake.write_tokenizer(tmp_path_factory.mktemp("fake"))
    with fake.model(folder, fake.babble(VOCAB), vocab=VOCAB, pages=60) as model:
        model.manifest.model["hidden_size"] = 8
        app = create_app(Catalogue({NAME: model}), Access(Keyring([key_of(KEY)])))
        yield schemathesis.openapi.from_asgi("/openapi.json", app, headers=HEADERS)


def test_every_path_is_asked(document: Any) -> None:
    assert sorted((op.ok().method.upper(), op.ok().path) for op in document.get_all_operations()) == sorted(PATHS)


@pytest.mark.parametrize("count", [15, pytest.param(300, marks=pytest.mark.slow)])
@pytest.mark.parametrize("mode", GenerationMode)
@pytest.mark.parametrize(("method", "path"), PATHS)
def test_the_document(method: str, path: str, mode: GenerationMode, count: int, document: Any) -> None:
    operation = document[path][method]
    if mode is GenerationMode.NEGATIVE and not operation.body and not operation.path_parameters:
        pytest.skip("nothing can be wrong")

    @seed(7)
    @settings(max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=mode))
    def check(case: schemathesis.Case) -> None:
        if mode is GenerationMode.POSITIVE and isinstance(case.body, dict) and case.body.get("model") is not None:
            case.body["model"] = NAME  # else nothing but 404 would be seen
        case.call_and_validate(headers=HEADERS, excluded_checks=NOT_CHECKED)

    check()


CHAT = {"messages": [{"role": "user", "content": "What is 12 plus 30?"}]}
REAL: list[tuple[str, dict[str, Any], type[BaseModel]]] = [
    ("/v1/chat/completions", CHAT, ChatCompletion),
    ("/v1/chat/completions", {**CHAT, "logprobs": True, "top_logprobs": 2, "n": 2}, ChatCompletion),
    ("/v1/completions", {"prompt": ["a", "b"], "echo": True, "logprobs": 3, "n": 2}, Completion),
    ("/v1/embeddings", {"input": ["a", "b"]}, EmbeddingList),
    ("/v1/embeddings", {"input": "a", "encoding_format": "base64"}, EmbeddingList),
    ("/v1/responses", {"input": "What is 12 plus 30?", "max_output_tokens": 2}, ResponseObject),
    ("/tokenize", {**CHAT, "return_token_strs": True}, TokenList),
]


@pytest.mark.parametrize(("path", "body", "schema"), REAL)
def test_answers_of_a_real_model(path: str, body: dict[str, Any], schema: type[BaseModel], http: httpx.Client) -> None:
    answer = http.post(path, json={"model": NAME, **body})
    assert answer.status_code == 200, answer.text
    assert schema.model_validate_json(answer.text, strict=True)


def test_a_card(http: httpx.Client) -> None:
    assert ModelCard.model_validate_json(http.get(f"/v1/models/{NAME}").text).id == NAME
