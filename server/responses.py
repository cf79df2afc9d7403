"""`POST /v1/responses`: OpenAI's newer API, without a store; whoever asks sends the whole conversation."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from deepzig.runtime.chat import ChatGeneration
from deepzig.runtime.result import END

from .bodies import JsonRoute
from .events import NamedEventStream, unless_gone
from .replies import Usage, new_id
from .response_items import Items
from .response_requests import ResponseRequest
from .schemas import STREAMED, ResponseObject
from .served import Catalogue, Served

ENDS = {"length": "incomplete"}
"""The finish_reason of an answer -> the status of the response, where it is not `completed`."""


def routes(catalogue: Catalogue) -> APIRouter:
    """The path, over the models that are served."""
    router = APIRouter(route_class=JsonRoute)

    @router.post("/v1/responses", response_model=ResponseObject, responses=STREAMED)
    async def responses(body: ResponseRequest, request: Request) -> Response:
        """A response to a conversation: reasoning, a message, calls of functions."""
        served, exchange = catalogue.asked(body.model, request)
        messages, options = body.messages(), body.options()
        generation = await asyncio.to_thread(lambda: exchange.submit(served.model.submit_chat, messages, **options))
        events = _events(served, body, generation)
        if body.stream:
            return NamedEventStream(events, generation.cancel)
        return JSONResponse(await unless_gone(request, _last(events), generation.cancel))

    return router


async def _last(events: AsyncIterator[dict[str, Any]]) -> dict[str, Any]:
    """The response as a whole: the last event has it."""
    response: dict[str, Any] = {}
    async for event in events:
        response = event.get("response", response)
    return response


async def _events(served: Served, body: ResponseRequest, generation: ChatGeneration) -> AsyncIterator[dict[str, Any]]:
    """What happens to a response, from its creation to its end."""
    items, usage, end = Items(served.model.tokenizer), Usage([generation.generation]), "stop"
    start = {"id": new_id("resp"), "object": "response", "created_at": int(time.time()), **body.told(served.name)}
    opened = {**start, "status": "in_progress", "output": [], "usage": None}
    yield {"type": "response.created", "response": opened}
    yield {"type": "response.in_progress", "response": opened}
    async for piece in generation:
        usage.add(piece.piece.token_id != END, piece.reasoning)
        end = piece.piece.finish_reason or end
        for event in items.add(piece):
            yield event
    status = ENDS.get(end, "completed")
    for event in items.close(status):
        yield event
    ended = {
        **start, "status": status, "output": items.items, "usage": _usage(usage),
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
    }  # fmt: skip
    yield {"type": f"response.{status}", "response": ended}


def _usage(usage: Usage) -> dict[str, Any]:
    told = usage.as_dict()
    return {
        "input_tokens": told["prompt_tokens"],
        "input_tokens_details": {**told["prompt_tokens_details"], "cache_write_tokens": 0},
        "output_tokens": told["completion_tokens"],
        "output_tokens_details": told["completion_tokens_details"],
        "total_tokens": told["total_tokens"],
    }
