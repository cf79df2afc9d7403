"""The application: what answers requests, put together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Depends, FastAPI
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from fastapi.security import HTTPBearer

from deepzig import __version__

from . import chat, completions, embeddings, page, responses, schemas, tokens, websocket
from .access import HEALTH, METRICS, Access
from .errors import install
from .exchange import REQUEST_ID
from .gate import Gate, Observer, Span
from .health import OK, Health
from .ledgers import HEADERS
from .metrics import CONTENT_TYPE, Metrics
from .schemas import ERRORS, ModelCard, ModelList
from .served import Catalogue, Served

KEY = Depends(HTTPBearer(auto_error=False, description="Only where keys are set; `Gate` checks them."))
"""Names the key in the document of the API."""


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
    app = FastAPI(title="DeepZig", version=__version__, docs_url=None, redoc_url=None)  # those load from elsewhere
    install(app)
    for routes in (chat.routes, completions.routes, responses.routes, embeddings.routes, tokens.routes, _models):
        app.include_router(routes(catalogue), responses=ERRORS, dependencies=[KEY])
    app.include_router(websocket.routes())
    app.include_router(page.routes())

    @app.get(HEALTH, response_model=schemas.Health, responses={503: {"model": schemas.Health}})
    async def told_health() -> Response:
        """Whether the server takes requests; needs no key."""
        return JSONResponse({"status": health.status}, 200 if health.status == OK else 503)

    @app.get(METRICS, response_class=PlainTextResponse, responses=ERRORS, dependencies=[KEY])
    async def told_metrics() -> Response:
        """Figures for Prometheus."""
        return Response(metrics.text(), media_type=CONTENT_TYPE)

    metrics = Metrics(catalogue, health, app.openapi()["paths"])
    app.add_middleware(Gate, access=access, health=health, observers=(metrics.observe, *observers), span=span)
    if origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=origins, allow_methods=["GET", "POST"], allow_headers=["*"],
            expose_headers=[REQUEST_ID, "retry-after", *HEADERS["requests"], *HEADERS["tokens"]],
        )  # fmt: skip
    return app


def _models(catalogue: Catalogue) -> APIRouter:
    router = APIRouter()

    def card(served: Served) -> dict[str, Any]:
        return {
            "id": served.name, "object": "model", "created": served.created, "owned_by": "deepzig",
            "max_model_len": served.model.context,
        }  # fmt: skip

    @router.get("/v1/models", response_model=ModelList)
    async def models() -> dict[str, Any]:
        """What is served."""
        return {"object": "list", "data": [card(served) for served in catalogue]}

    @router.get("/v1/models/{name:path}", response_model=ModelCard)
    async def one_model(name: str) -> dict[str, Any]:
        """A model that is served."""
        return card(catalogue[name])

    return router
