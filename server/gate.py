"""What every request passes: an id, its key, limits, time; and what is told of it when it is over."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import anyio
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from . import bodies
from .access import Access
from .errors import ApiError, failed
from .events import error_event
from .exchange import REQUEST_ID, Exchange
from .health import Health

PATIENCE = 1.0
"""Seconds for a client to take the error that ends its stream: it may read nothing at all."""

Observer = Callable[[Exchange], None]
Span = Callable[[Exchange, Headers], AbstractContextManager[None]]


class Gate:
    """ASGI middleware: lets a request in by `Access`, and tells observers when it is over.

    The path that answers finds its `Exchange` as `request.state.exchange`.

    Args:
        app: what answers.
        access: who may ask, and how much.
        health: whether requests are taken.
        observers: are told of every request when it is over.
        span: is entered as long as a request lasts.
    """

    def __init__(
        self, app: ASGIApp, access: Access, health: Health, observers: Sequence[Observer] = (), span: Span | None = None
    ) -> None:
        self._app, self._access, self._health, self._observers = app, access, health, observers
        self._span = span or (lambda *_: nullcontext())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        exchange = Exchange(scope, self._access.request)
        scope["state"] = {**scope.get("state", {}), "exchange": exchange}  # which requests of a WebSocket share
        answer = _Answer(exchange, send)
        self._health.under_way += 1
        try:
            with self._span(exchange, headers):
                await self._serve(exchange, headers, scope, receive, answer)
        finally:
            exchange.end()
            self._health.under_way -= 1
            for observe in self._observers:
                observe(exchange)

    async def _serve(
        self, exchange: Exchange, headers: Headers, scope: Scope, receive: Receive, answer: _Answer
    ) -> None:
        limits = self._access.request
        try:
            self._access.admit(exchange, scope, headers)
            if exchange.path not in self._access.public:
                self._health.check()
            body = await bodies.read(headers, receive, limits)
        except ApiError as error:
            await error.response()(scope, receive, answer.send)
            return
        if body is None:  # the client has gone
            return
        exchange.body = body
        pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return pending.pop() if pending else await receive()

        time = anyio.move_on_after(limits.seconds)
        try:
            with time:
                await self._app(scope, replay, answer.send)
        except Exception as error:
            await answer.fail(failed(error), scope, receive)
        if time.cancelled_caught:
            what = f"the answer took more than {limits.seconds:g} s"
            late = ApiError(408, what, code="timeout", headers={"x-should-retry": "false"})
            await answer.fail(late, scope, receive)


class _Answer:
    """Sends an answer, with the headers that every answer has."""

    def __init__(self, exchange: Exchange, send: Send) -> None:
        self._exchange, self._send = exchange, send
        self._begun = self._ended = False
        self._streams = False

    async def send(self, message: Message) -> None:
        """Send a message of ASGI."""
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers[REQUEST_ID] = self._exchange.id
            if self._exchange.account:
                headers.update(self._exchange.account.headers())
            self._exchange.status, self._begun = message["status"], True
            self._streams = headers.get("content-type", "").startswith("text/event-stream")
        elif not message.get("more_body", False):
            self._ended = True
        await self._send(message)

    async def fail(self, error: ApiError, scope: Scope, receive: Receive) -> None:
        """Answer with an error, or end a stream that has begun with one; what else has begun is cut off."""
        if not self._begun:
            await error.response()(scope, receive, self.send)
        elif self._streams and not self._ended:
            with anyio.move_on_after(PATIENCE):
                await self._send({"type": "http.response.body", "body": error_event(error), "more_body": False})
