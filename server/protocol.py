"""Connections: how many there may be, and how long and how large a request's head may be."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import orjson
import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from .errors import INTERNAL, ApiError


@dataclass(frozen=True)
class ConnectionLimits:
    """What connections may take.

    Attributes:
        connections: at a time.
        head: bytes of a request's first line and its headers.
        head_seconds: in which they have to come.
    """

    connections: int = 1000
    head: int = 64 << 10
    head_seconds: float = 10.0


class Config(uvicorn.Config):
    """uvicorn's, and limits of connections."""

    def __init__(self, app: Any, limits: ConnectionLimits, **options: Any) -> None:
        # our own reading of X-Forwarded-For is in `addresses`
        super().__init__(app, http=Connection, proxy_headers=False, server_header=False, access_log=False, **options)
        self.limits = limits


class Connection(HttpToolsProtocol):
    """Ends a connection that is one too many, or whose client sends no request's head in time; uvicorn does neither.

    Its `send_400_response` and its callbacks are what uvicorn and httptools call.
    """

    config: Config
    _timer: asyncio.TimerHandle | None = None
    _in_body = _oversized = False
    _head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has come."""
        super().connection_made(transport)
        if len(self.connections) > self.config.limits.connections:
            error = ApiError(503, "there are too many connections", INTERNAL, code="overloaded")
            self._end(error, "retry-after: 1\r\n")
            return
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone."""
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes have come; they stop uvicorn's timer, so where nothing is being answered another one starts."""
        if self.transport.is_closing():
            return
        if self._timer is None and (self.cycle is None or self.cycle.response_complete):
            self._await_head()
        before = self._in_body
        super().data_received(data)
        if not (before or self._in_body or self._timer is None):
            self._head_bytes += len(data)
            if self._head_bytes > self.config.limits.head:
                self._too_large()

    def on_headers_complete(self) -> None:
        """A head is there."""
        self._stop_waiting()
        self._in_body = True
        if sum(len(name) + len(value) for name, value in self.headers) + len(self.url) > self.config.limits.head:
            self._oversized = True
            raise ValueError("the head is too large")  # the parser stops, and `send_400_response` is called
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """A request is there."""
        self._in_body = False
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, or has too large a head."""
        if self._oversized:
            self._too_large()
        else:
            self._end(ApiError(400, "this is no request of HTTP"))

    def _await_head(self) -> None:
        self._head_bytes = 0
        self._timer = self.loop.call_later(self.config.limits.head_seconds, self._too_late)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_large(self) -> None:
        self._end(ApiError(431, f"headers are larger than {self.config.limits.head} bytes"))

    def _too_late(self) -> None:
        if self._head_bytes:
            self._end(ApiError(408, f"no request came within {self.config.limits.head_seconds:g} s", code="timeout"))
        else:  # no request has begun: there is nothing to answer
            self.transport.close()

    def _end(self, error: ApiError, headers: str = "") -> None:
        """Answer and close."""
        self._stop_waiting()
        if self.transport.is_closing():
            return
        body = orjson.dumps(error.body)
        head = f"content-type: application/json\r\ncontent-length: {len(body)}\r\n{headers}connection: close\r\n\r\n"
        self.transport.write(STATUS_LINE[error.status] + head.encode() + body)
        self.transport.close()
