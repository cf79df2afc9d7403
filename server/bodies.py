"""The bodies of requests: how much is read, for how long, and what of JSON is taken."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Coroutine
from typing import Any

import anyio
import orjson
from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.datastructures import Headers
from starlette.types import Receive

from .errors import ApiError
from .limits import RequestLimits

DEEPEST = 100
"""Objects and lists within each other."""
JSON = re.compile(r"application/([\w.-]+\+)?json\s*(;|$)", re.IGNORECASE)
"""Types of bodies that are JSON (RFC 6839)."""


async def read(headers: Headers, receive: Receive, limits: RequestLimits) -> bytes | None:
    """A body, or None if the client has gone.

    Raises:
        ApiError: it is too large (413), whether it tells its length or not, or too slow (408).
    """
    told = headers.get("content-length", "")
    total, parts, more = int(told) if told.isdecimal() else 0, list[bytes](), True
    received = 0
    with anyio.move_on_after(limits.body_seconds):
        while more and total <= limits.body:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            parts.append(message.get("body", b""))
            received += len(parts[-1])
            total = max(total, received)
            more = message.get("more_body", False)
        if total > limits.body:
            raise ApiError(413, f"the request is larger than {limits.body} bytes", code="request_too_large")
        return b"".join(parts)
    close = {"Connection": "close"}
    raise ApiError(408, f"the body did not come within {limits.body_seconds:g} s", code="timeout", headers=close)


def parse(body: bytes) -> Any:
    """The value of a JSON text.

    Raises:
        json.JSONDecodeError: it is none, is not UTF-8, has NaN, infinity or half of a surrogate pair, or is too deep.
    """
    value = orjson.loads(body)
    if not _is_flat(value, DEEPEST):
        raise json.JSONDecodeError(f"it is nested deeper than {DEEPEST} levels", "", 0)
    return value


def _is_flat(value: Any, levels: int) -> bool:
    if not isinstance(value, dict | list):
        return True
    values = value.values() if isinstance(value, dict) else value
    return levels > 0 and all(_is_flat(one, levels - 1) for one in values if isinstance(one, dict | list))


class JsonRequest(Request):
    """A request whose body is read by `parse`."""

    async def json(self) -> Any:
        """Its value."""
        return parse(await self.body())


class JsonRoute(APIRoute):
    """A path whose requests are `JsonRequest`s.

    Other types of bodies are refused: pages of other origins may send those without asking.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """What answers them."""
        answer = super().get_route_handler()

        async def handle(request: Request) -> Response:
            if request.method == "POST" and not JSON.match(request.headers.get("content-type", "")):
                message = "the body is not said to be JSON: send the header Content-Type: application/json"
                raise ApiError(415, message, code="unsupported_media_type")
            return await answer(JsonRequest(request.scope, request.receive))

        return handle
