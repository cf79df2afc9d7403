"""The application: what answers requests, put together."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends, FastAPI
from fastapi.security import HTTPBearer

from deepzig import __version__
from deepzig.runtime import Model

from . import chat, completions, embeddings, page, responses, tokens, websocket
from .errors import install
from .limits import Access, Gate
from .schemas import ERRORS, Health, ModelCard, ModelList
from .served import Catalogue, Served

KEY = Depends(HTTPBearer(auto_error=False, description="Only where keys are set; `Gate` checks them."))
"""Names the key in the document of the API."""


def create_app(model: Model, name: str, access: Access | None = None) -> FastAPI:
    """An ASGI application that serves a model; the model stays the caller's to close.

    Args:
        model: a loaded model.
        name: what clients call it.
        access: keys and limits; by default anyone may ask.
    """
    app = FastAPI(title="DeepZig", version=__version__, docs_url=None, redoc_url=None)  # those load from elsewhere
    app.add_middleware(Gate, access=access or Access())
    install(app)
    catalogue = Catalogue({name: model})
    for routes in (chat.routes, completions.routes, responses.routes, embeddings.routes, tokens.routes, _models):
        app.include_router(routes(catalogue), responses=ERRORS, dependencies=[KEY])
    app.include_router(websocket.routes())
    app.include_router(page.routes())

    @app.get("/health", response_model=Health, responses=ERRORS)
    async def health() -> dict[str, str]:
        """Whether the server takes requests; needs no key."""
        return {"status": "ok"}

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
