"""LangChain's client, against what the model says when it is asked directly."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel, Field

from deepzig.runtime import Model

from .conftest import KEY, NAME

QUESTION = "What is 12 plus 30?"
ASKED = [{"role": "user", "content": QUESTION}]


class Person(BaseModel):
    """Somebody."""

    age: int = Field(ge=0, le=120)


@pytest.fixture
def chat(address: str) -> ChatOpenAI:
    return ChatOpenAI(base_url=f"{address}/v1", api_key=KEY, model=NAME, temperature=0, max_retries=0)


def test_an_answer(chat: ChatOpenAI, model: Model) -> None:
    told: Any = chat.invoke([("developer", "Be brief."), ("human", QUESTION)])
    wanted = model.chat([{"role": "system", "content": "Be brief."}, *ASKED])
    assert told.content == wanted.content and told.response_metadata["finish_reason"] == wanted.finish_reason
    assert told.usage_metadata["output_tokens"] == len(wanted.result.token_ids)


def test_a_stream(chat: ChatOpenAI, model: Model) -> None:
    async def parts() -> list[Any]:
        return [part.content async for part in chat.astream(QUESTION)]

    wanted = model.chat(ASKED).content
    for told in ([part.content for part in chat.stream(QUESTION)], asyncio.run(parts())):
        assert "".join(told) == wanted and len(told) > 2


def test_an_object(chat: ChatOpenAI) -> None:
    assert isinstance(chat.with_structured_output(Person).invoke("Tell me a story."), Person)


def test_responses(address: str, model: Model) -> None:
    chat = ChatOpenAI(
        base_url=f"{address}/v1", api_key=KEY, model=NAME, temperature=0, max_retries=0, use_responses_api=True
    )
    wanted = model.chat(ASKED).content
    assert chat.invoke(QUESTION).text == wanted
    assert "".join(part.text for part in chat.stream(QUESTION)) == wanted


def test_embeddings(address: str, model: Model) -> None:
    embeddings = OpenAIEmbeddings(
        base_url=f"{address}/v1", api_key=KEY, model=NAME, max_retries=0, check_embedding_ctx_length=False
    )
    texts = ["a lamp", "the number 7"]
    told = embeddings.embed_documents(texts)
    assert [[float(number) for number in row] for row in model.embed(texts)] == told
