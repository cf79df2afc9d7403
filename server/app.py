"""The application: which path is answered by what."""

from __future__ import annotations

import asyncio
import hashlib
import time
from contextlib import ExitStack
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from deepzig import __version__
from deepzig.runtime import Generation, Model

from . import chat, completions
from .errors import ApiError, install
from .events import EventStream, unless_gone
from .limits import Access, Gate
from .replies import Head
from .requests import ChatRequest, CompletionRequest


def create_app(model: Model, name: str, access: Access | None = None) -> FastAPI:
    """An ASGI application that serves a model; the model stays the caller's to close.

    Args:
        model: a loaded model.
        name: what clients call it.
        access: keys and limits; by default anyone may ask.
    """
    app = FastAPI(title="DeepZig", version=__version__)
    app.add_middleware(Gate, access=access or Access())
    install(app)
    fingerprint = f"fp_{hashlib.sha256(model.manifest.to_json().encode()).hexdigest()[:12]}"
    card = {"id": name, "object": "model", "created": int(time.time()), "owned_by": "deepzig"}

    def check(asked: str) -> None:
        if asked != name:
            raise ApiError(404, f"there is no model {asked!r}", param="model", code="model_not_found")

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [card]}

    @app.get("/v1/models/{asked:path}")
    async def one_model(asked: str) -> dict[str, Any]:
        check(asked)
        return card

    @app.post("/v1/chat/completions")
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        check(body.model)
        # rendering, tokenizing and compiling a grammar take too long for the event loop
        generation = await asyncio.to_thread(model.submit_chat, body.messages, **body.options())
        if body.stream:
            head = Head("chatcmpl", "chat.completion.chunk", name, fingerprint)
            events = chat.chunks(head, generation, model.tokenizer, body.include_usage)
            return EventStream(events, generation.cancel)
        head = Head("chatcmpl", "chat.completion", name, fingerprint)
        answer = chat.whole(head, generation, model.tokenizer)
        return JSONResponse(await unless_gone(request, answer, generation.cancel))

    @app.post("/v1/completions")
    async def plain_completions(body: CompletionRequest, request: Request) -> Response:
        check(body.model)
        generations = await asyncio.to_thread(_submit_all, model, body)

        def cancel() -> None:
            for generation in generations:
                generation.cancel()

        head = Head("cmpl", "text_completion", name, fingerprint)
        if body.stream:
            events = completions.chunks(head, generations, model.tokenizer, body.include_usage)
            return EventStream(events, cancel)
        answer = completions.whole(head, generations, model.tokenizer)
        return JSONResponse(await unless_gone(request, answer, cancel))

    return app


def _submit_all(model: Model, body: CompletionRequest) -> list[Generation]:
    """Submit all prompts, or none of them."""
    options = body.options()
    with ExitStack() as stack:
        generations = [stack.enter_context(model.submit(prompt, **options)) for prompt in body.prompts()]
        stack.pop_all()
    return generations
