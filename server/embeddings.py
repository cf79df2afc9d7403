"""`POST /v1/embeddings`."""

from __future__ import annotations

import asyncio
import base64
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, StrictInt, StrictStr

from deepzig.errors import DeepZigError

from .bodies import JsonRoute
from .errors import ApiError, refused
from .events import unless_gone
from .exchange import Exchange
from .requests import Prompts, prompts_of
from .schemas import EmbeddingList
from .served import Catalogue, Served

AT_ONCE = 32
"""Texts of one request that are given to the engine at a time: more would leave no room in its queue for others."""


class EmbeddingRequest(BaseModel):
    """The body of `POST /v1/embeddings`."""

    model_config = ConfigDict(extra="ignore", strict=True)

    model: StrictStr
    input: Prompts
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: StrictInt | None = None


def routes(catalogue: Catalogue) -> APIRouter:
    """The path, over the models that are served."""
    router = APIRouter(route_class=JsonRoute)

    @router.post("/v1/embeddings", response_model=EmbeddingList)
    async def embeddings(body: EmbeddingRequest, request: Request) -> Response:
        """Embeddings of texts: the last state of each, of length 1."""
        served, exchange = catalogue.asked(body.model, request)
        width = int(served.model.manifest.model["hidden_size"])
        if body.dimensions not in (None, width):
            what = f"this model's embeddings have {width} numbers, and were not trained to be cut"
            raise ApiError(400, what, param="dimensions")
        answer = _whole(exchange, served, prompts_of(body.input, "input"), body.encoding_format)
        return JSONResponse(await unless_gone(request, answer, lambda: None))

    return router


async def _whole(exchange: Exchange, served: Served, texts: list[str | list[int]], form: str) -> dict[str, Any]:
    data: list[dict[str, Any]] = []
    tokens = 0
    for begin in range(0, len(texts), AT_ONCE):
        try:
            part = texts[begin : begin + AT_ONCE]
            asked = await asyncio.to_thread(served.model.submit_embeddings, part, admit=exchange.admit)
        except DeepZigError as error:
            raise refused(error) from error
        try:
            for generation, _ in asked:
                exchange.watch(generation)
            for generation, embedding in asked:
                await generation.await_end()
                tokens += len(generation.request.prompt)
                vector = _as(form, embedding.vector)
                data.append({"object": "embedding", "index": len(data), "embedding": vector})
        finally:
            for generation, _ in asked:
                generation.cancel()
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "model": served.name, "data": data, "usage": usage}


def _as(form: str, vector: Any) -> Any:
    if form == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return vector.tolist()
