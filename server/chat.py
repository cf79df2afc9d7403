"""`POST /v1/chat/completions`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from deepzig.runtime import Message
from deepzig.runtime.chat import ChatGeneration, ChatPiece
from deepzig.runtime.parsers import Delta
from deepzig.runtime.result import END
from deepzig.runtime.tokenizer import Tokenizer

from .bodies import JsonRoute
from .events import EventStream, unless_gone
from .messages import conversation
from .replies import Head, Usage, chat_logprobs
from .requests import ChatRequest
from .schemas import STREAMED, ChatCompletion
from .served import Catalogue


def routes(catalogue: Catalogue) -> APIRouter:
    """The path, over the models that are served."""
    router = APIRouter(route_class=JsonRoute)

    @router.post("/v1/chat/completions", response_model=ChatCompletion, responses=STREAMED)
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        """Answers to messages."""
        served, exchange = catalogue.asked(body.model, request)
        messages, options = conversation(body.messages), body.options()
        # rendering, tokenizing and compiling a grammar take too long for the event loop
        generation = await asyncio.to_thread(lambda: exchange.submit(served.model.submit_chat, messages, **options))
        tokenizer = served.model.tokenizer
        if body.stream:
            events = chunks(served.head("chatcmpl", "chat.completion.chunk"), generation, tokenizer, body.include_usage)
            return EventStream(events, generation.cancel)
        answer = whole(served.head("chatcmpl", "chat.completion"), generation, tokenizer)
        return JSONResponse(await unless_gone(request, answer, generation.cancel))

    return router


def _call(index: int | None, id: str | None, name: str | None, arguments: str) -> dict[str, Any]:
    """A call of a tool, or a part of one: its first part alone has the id and the name."""
    place = {} if index is None else {"index": index}
    if id is None:
        return {**place, "function": {"arguments": arguments}}
    return {**place, "id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def _delta(delta: Delta) -> dict[str, Any]:
    if delta.call:
        call = delta.call
        return {"tool_calls": [_call(call.index, call.id, call.name, call.arguments)]}
    if delta.reasoning:
        return {"reasoning_content": delta.reasoning}
    return {"content": delta.content}


def _message(message: Message) -> dict[str, Any]:
    calls = [_call(None, call.id, call.name, call.arguments) for call in message.tool_calls]
    return {
        "role": "assistant", "content": message.content or (None if calls else ""), "refusal": None,
        **({"reasoning_content": message.reasoning_content} if message.reasoning_content else {}),
        **({"tool_calls": calls} if calls else {}),
    }  # fmt: skip


async def whole(head: Head, generation: ChatGeneration, tokenizer: Tokenizer) -> dict[str, Any]:
    """The answer as one object."""
    usage = Usage([generation.generation])
    pieces = [one async for one in generation]
    for one in pieces:
        usage.add(one.piece.token_id != END, one.reasoning)
    result = generation.result_of(pieces)
    choices = [
        {
            "index": index, "message": _message(message), "finish_reason": message.finish_reason,
            "logprobs": None if choice.logprobs is None else chat_logprobs(choice.logprobs, tokenizer),
        }
        for index, (message, choice) in enumerate(zip(result.messages, result.result.choices, strict=True))
    ]  # fmt: skip
    return {**head.start(), "choices": choices, "usage": usage.as_dict()}


async def chunks(
    head: Head, generation: ChatGeneration, tokenizer: Tokenizer, include_usage: bool
) -> AsyncIterator[dict[str, Any]]:
    """The answer in parts."""
    start = {**head.start(), **({"usage": None} if include_usage else {})}
    usage = Usage([generation.generation])
    for index in range(generation.generation.request.options.n):
        yield {**start, "choices": [_choice(index, {"role": "assistant", "content": ""})]}
    async for one in generation:
        usage.add(one.piece.token_id != END, one.reasoning)
        for choice in _choices(one, tokenizer):
            yield {**start, "choices": [choice]}
    if include_usage:
        yield {**start, "choices": [], "usage": usage.as_dict()}


def _choices(one: ChatPiece, tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """What to send of a token: its log-probability goes with the first part, or alone if it has no text yet."""
    told = one.piece.logprob if one.piece.token_id != END else None
    logprobs = chat_logprobs([told], tokenizer) if told else None
    deltas = [_delta(delta) for delta in one.deltas] or ([{}] if logprobs else [])
    choices = [_choice(one.index, delta, logprobs if not at else None) for at, delta in enumerate(deltas)]
    if one.piece.finish_reason:
        choices.append(_choice(one.index, {}, finish_reason=one.piece.finish_reason))
    return choices


def _choice(
    index: int, delta: dict[str, Any], logprobs: dict[str, Any] | None = None, finish_reason: str | None = None
) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
