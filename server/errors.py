"""Errors as OpenAI's API tells them: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from deepzig.errors import DeepZigError
from deepzig.runtime import EngineBusyError

log = logging.getLogger(__name__)

INVALID, INTERNAL = "invalid_request_error", "server_error"
RETRY_AFTER = "1"
"""Seconds that a client is asked to wait when the engine's queue is full."""

FIELD = re.compile(r"\w+(\.\w+)*")
"""What may be the name of a field, and no path of a file, which is nothing to tell a client."""

MESSAGES = {404: "there is no such path", 405: "the path does not take this method"}


class ApiError(Exception):
    """An answer that is an error.

    Args:
        status: of HTTP.
        message: what went wrong.
        kind: OpenAI's type of error.
        param: the field of the request that is to blame.
        code: OpenAI's code, where it has one.
        headers: to send along.
    """

    def __init__(
        self, status: int, message: str, kind: str = INVALID, *, param: str | None = None, code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(message)
        self.status, self.headers = status, headers
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}

    def response(self) -> JSONResponse:
        """The error as a response."""
        return JSONResponse(self.body, self.status, self.headers)


def refused(error: Exception) -> ApiError:
    """What a client is told of an exception that came before the first token."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, EngineBusyError):
        headers = {"Retry-After": RETRY_AFTER}
        return ApiError(503, error.what, INTERNAL, code="overloaded", headers=headers)
    if isinstance(error, DeepZigError):
        field = error.where.removeprefix("option ")
        return ApiError(400, f"{error.what}: {error.hint}", param=field if FIELD.fullmatch(field) else None)
    return failed(error)


def failed(error: Exception) -> ApiError:
    """What a client is told of an exception that is not its own fault; the log has the details."""
    log.error("a request failed", exc_info=error)
    return ApiError(500, "the server failed to answer", INTERNAL, code="internal_error")


def _invalid(error: RequestValidationError) -> ApiError:
    """The first of what the schema found."""
    first: Mapping[str, Any] = error.errors()[0]
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body can't be read: {first['ctx']['error']}", code="invalid_json")
    place = ".".join(map(str, _place(first["loc"], {"body": error.body})))
    return ApiError(400, f"{place or 'the body'}: {first['msg']}", param=place or None)


def _place(loc: Sequence[int | str], value: Any) -> list[int | str]:
    """The names of a field and of what it is in; what the schema's own alternatives are called is left out."""
    place: list[int | str] = []
    for part in loc:
        if isinstance(value, dict):
            value = value.get(part)
        elif isinstance(value, list) and isinstance(part, int):
            value = value[part]
        else:
            break
        place.append(part)
    return place[1:]


def install(app: FastAPI) -> None:
    """Let an app answer all errors in OpenAI's shape."""

    async def api(_: Request, error: Exception) -> JSONResponse:
        return refused(error).response()

    async def invalid(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return _invalid(error).response()

    async def http(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        message = MESSAGES.get(error.status_code, str(error.detail))
        return ApiError(error.status_code, message, headers=error.headers).response()

    for kind in (ApiError, DeepZigError):  # `Gate` answers others
        app.add_exception_handler(kind, api)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
