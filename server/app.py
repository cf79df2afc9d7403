"""The application: which path is answered by what."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from fastapi import FastAPI, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, Response

from deepzig import __version__
from deepzig.runtime import Generation, Model

from . import chat, completions
from .access import HEALTH, METRICS, Access
from .bodies import JsonRoute
from .errors import install
from .events import EventStream, unless_gone
from .exchange import REQUEST_ID, Exchange
from .gate import Gate, Observer, Span
from .health import OK, Health
from .ledgers import HEADERS
from .metrics import CONTENT_TYPE, Metrics
from .requests import ChatRequest, CompletionRequest
from .served import Catalogue, Served


def create_app(
    catalogue: Catalogue, access: Access | None = None, health: Health | None = None, *,
    observers: Sequence[Observer] = (), span: Span | None = None, origins: Sequence[str] = (),
) -> FastAPI:  # fmt: skip
    """An ASGI application that serves models; they stay the caller's to close.

    Args:
        catalogue: the models; more may come.
        access: keys and limits; by default anyone may ask.
        health: whether requests are taken; by default they are.
        observers: are told of every request when it is over.
        span: is entered as long as a request lasts.
        origins: of web pages that may ask from browsers, `*` for all.
    """
    access, health = access or Access(), health or Health()
    app = FastAPI(title="DeepZig", version=__version__)
    app.router.route_class = JsonRoute
    install(app)

    @app.get(HEALTH)
    async def told_health() -> Response:
        return JSONResponse({"status": health.status}, 200 if health.status == OK else 503)

    @app.get(METRICS)
    async def told_metrics() -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [served.card for served in catalogue]}

    @app.get("/v1/models/{asked:path}")
    async def one_model(asked: str) -> dict[str, Any]:
        return catalogue[asked].card

    @app.post("/v1/chat/completions")
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        served, exchange = _asked(catalogue, body.model, request)
        model = served.model
        # rendering, tokenizing and compiling a grammar take too long for the event loop
        generation = await asyncio.to_thread(
            lambda: exchange.submit(model.submit_chat, body.messages, **body.options())
        )  # fmt: skip
        if body.stream:
            head = served.head("chatcmpl", "chat.completion.chunk")
            events = chat.chunks(head, generation, model.tokenizer, body.include_usage)
            return EventStream(events, generation.cancel)
        head = served.head("chatcmpl", "chat.completion")
        answer = chat.whole(head, generation, model.tokenizer)
        return JSONResponse(await unless_gone(request, answer, generation.cancel))

    @app.post("/v1/completions")
    async def plain_completions(body: CompletionRequest, request: Request) -> Response:
        served, exchange = _asked(catalogue, body.model, request)
        tokenizer = served.model.tokenizer
        generations = await asyncio.to_thread(_submit_all, exchange, served.model, body)

        def cancel() -> None:
            for generation in generations:
                generation.cancel()

        head = served.head("cmpl", "text_completion")
        if body.stream:
            events = completions.chunks(head, generations, tokenizer, body.include_usage)
            return EventStream(events, cancel)
        answer = completions.whole(head, generations, tokenizer)
        return JSONResponse(await unless_gone(request, answer, cancel))

    metrics = Metrics(catalogue, health, [route.path for route in app.routes if isinstance(route, JsonRoute)])
    app.add_middleware(Gate, access=access, health=health, observers=(metrics.observe, *observers), span=span)
    if origins:
        shown = [REQUEST_ID, "retry-after", *HEADERS["requests"], *HEADERS["tokens"]]
        app.add_middleware(
            CORSMiddleware, allow_origins=origins, allow_methods=["GET", "POST"], allow_headers=["*"],
            expose_headers=shown,
        )  # fmt: skip
    return app


def _asked(catalogue: Catalogue, name: str, request: Request) -> tuple[Served, Exchange]:
    """The model that a request names, and what it goes through to ask it."""
    served, exchange = catalogue[name], request.state.exchange
    exchange.model = served.name
    return served, exchange


def _submit_all(exchange: Exchange, model: Model, body: CompletionRequest) -> list[Generation]:
    """Submit all prompts, or none of them."""
    options = body.options()
    with ExitStack() as stack:
        generations = [
            stack.enter_context(exchange.submit(model.submit, prompt, **options)) for prompt in body.prompts()
        ]
        stack.pop_all()
    return generations
