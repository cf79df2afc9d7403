"""The models that are served, by the names that clients call them."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping

from fastapi import Request

from deepzig.runtime import Model

from .errors import ApiError
from .exchange import Exchange
from .replies import Head


class Served:
    """A model under its name.

    Args:
        name: what clients call it.
        model: a loaded model; stays the caller's to close.
    """

    def __init__(self, name: str, model: Model) -> None:
        self.name, self.model = name, model
        self.created = int(time.time())
        self.fingerprint = f"fp_{hashlib.sha256(model.manifest.to_json().encode()).hexdigest()[:12]}"

    def head(self, prefix: str, kind: str) -> Head:
        """What all parts of an answer of this model share; `prefix` is that of its id."""
        return Head(prefix, kind, self.name, self.fingerprint)


class Catalogue:
    """What is served.

    Args:
        models: name -> model; more may be added.
    """

    def __init__(self, models: Mapping[str, Model] | None = None) -> None:
        self._served = {name: Served(name, model) for name, model in (models or {}).items()}

    def __iter__(self) -> Iterator[Served]:
        return iter(self._served.values())

    def __getitem__(self, name: str) -> Served:
        """The model of that name.

        Raises:
            ApiError: there is none (404).
        """
        if name not in self._served:
            message = f"there is no model {name!r}: GET /v1/models lists them"
            raise ApiError(404, message, param="model", code="model_not_found")
        return self._served[name]

    def get(self, name: str | None) -> Served:
        """As `catalogue[name]`, or the first model without a name.

        Raises:
            ApiError: as `catalogue[name]`.
        """
        return next(iter(self)) if name is None else self[name]

    def asked(self, name: str | None, request: Request) -> tuple[Served, Exchange]:
        """The model that a request names, and what the request goes through to ask it.

        Raises:
            ApiError: as `catalogue[name]`.
        """
        served, exchange = self.get(name), request.state.exchange
        exchange.model = served.name
        return served, exchange

    def add(self, name: str, model: Model) -> None:
        """Serve another model."""
        self._served[name] = Served(name, model)
