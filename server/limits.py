"""What stands before every request: its id, the key, and the size of its body."""

from __future__ import annotations

import hashlib
import hmac
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import ApiError

REQUEST_ID = "x-request-id"
LONGEST_ID = 128
"""Characters of a client's own request id that are taken over."""

OPEN = frozenset({"/", "/health"})
"""Paths that need no key."""


@dataclass(frozen=True)
class Access:
    """Who may ask, and how much at once.

    Attributes:
        keys: bearer keys, any of which lets in; without any, everyone may ask.
        max_body: bytes of a request's body.
    """

    keys: Sequence[str] = ()
    max_body: int = 16 << 20
    digests: tuple[bytes, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "digests", tuple(_digest(key) for key in self.keys))

    def check_key(self, headers: Headers) -> None:
        """Raises ApiError (401) unless a request has one of the keys. Takes as long whichever key it is."""
        scheme, _, key = headers.get("authorization", "").partition(" ")
        given = _digest(key.strip() if scheme.lower() == "bearer" else "")
        matches = [hmac.compare_digest(given, digest) for digest in self.digests]
        if self.digests and not any(matches):
            raise ApiError(
                401, "the API key is missing or wrong", code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"}
            )


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


class Gate:
    """ASGI middleware: checks a request by `Access` before the app sees it, and gives every response a request id.

    The body is read here, so that one that is too large is refused whether it tells its length or not.
    """

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get(REQUEST_ID, "")
        request_id = given if given.isprintable() and 0 < len(given) <= LONGEST_ID else uuid.uuid4().hex

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[REQUEST_ID] = request_id
            await send(message)

        try:
            if scope["path"] not in OPEN:
                self._access.check_key(headers)
            body = await self._body(headers, receive)
        except ApiError as error:
            await error.response()(scope, receive, send_with_id)
            return
        if body is None:  # the client has gone
            return
        pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return pending.pop() if pending else await receive()

        await self._app(scope, replay, send_with_id)

    async def _body(self, headers: Headers, receive: Receive) -> bytes | None:
        told = headers.get("content-length", "")
        size, parts, more = int(told) if told.isdecimal() else 0, [], True
        total = 0
        while more and max(size, total) <= self._access.max_body:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            parts.append(message.get("body", b""))
            total += len(parts[-1])
            more = message.get("more_body", False)
        if max(size, total) > self._access.max_body:
            most = self._access.max_body
            raise ApiError(413, f"the request is larger than {most} bytes", code="request_too_large")
        return b"".join(parts)
