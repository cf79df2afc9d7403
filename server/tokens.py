"""`POST /tokenize` and `POST /detokenize`, with vLLM's bodies."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr

from deepzig.runtime import Model
from deepzig.runtime.prompt import ChatOptions, prompt_tokens

from .bodies import JsonRoute
from .errors import ApiError
from .messages import ChatMessage, conversation
from .schemas import TokenList, TokensText
from .served import Catalogue


class TokenizeRequest(BaseModel):
    """The body of `POST /tokenize`: a text, or messages; without a model, the first that is served."""

    model_config = ConfigDict(extra="ignore", strict=True)

    model: StrictStr | None = None
    prompt: StrictStr | None = None
    messages: list[ChatMessage] | None = Field(None, min_length=1)
    add_special_tokens: StrictBool | None = None
    add_generation_prompt: StrictBool = True
    continue_final_message: StrictBool = False
    tools: list[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    return_token_strs: StrictBool = False


class DetokenizeRequest(BaseModel):
    """The body of `POST /detokenize`."""

    model_config = ConfigDict(extra="ignore", strict=True)

    model: StrictStr | None = None
    tokens: list[StrictInt]


def routes(catalogue: Catalogue) -> APIRouter:
    """The paths, over the models that are served."""
    router = APIRouter(route_class=JsonRoute)

    @router.post("/tokenize", response_model=TokenList)
    async def tokenize(body: TokenizeRequest, request: Request) -> dict[str, Any]:
        """Token ids of a text, or of messages as the model reads them."""
        model = catalogue.asked(body.model, request)[0].model
        tokens = await asyncio.to_thread(_tokens, model, body)
        texts = [model.tokenizer.written(token) for token in tokens] if body.return_token_strs else None
        return {"count": len(tokens), "max_model_len": model.context, "tokens": tokens, "token_strs": texts}

    @router.post("/detokenize", response_model=TokensText)
    async def detokenize(body: DetokenizeRequest, request: Request) -> dict[str, Any]:
        """The text of token ids, special tokens shown by their names."""
        model = catalogue.asked(body.model, request)[0].model
        size = int(model.manifest.model["vocab_size"])
        if not all(0 <= token < size for token in body.tokens):
            raise ApiError(400, f"a token is not in the vocabulary: use 0 to {size - 1}", param="tokens")
        return {"prompt": await asyncio.to_thread(model.tokenizer.decode, body.tokens, False)}

    return router


def _tokens(model: Model, body: TokenizeRequest) -> list[int]:
    if (body.prompt is None) == (body.messages is None):
        raise ApiError(400, "give either prompt or messages", param="prompt")
    if body.prompt is not None:
        return model.tokenizer.encode(body.prompt, body.add_special_tokens is not False)
    variables = {
        **(body.chat_template_kwargs or {}), "add_generation_prompt": body.add_generation_prompt,
        "continue_final_message": body.continue_final_message,
    }  # fmt: skip
    messages = conversation(body.messages or [])
    return prompt_tokens(messages, model.tokenizer, ChatOptions(body.tools or None, None, variables))
