"""`/v1/stream`: a WebSocket that carries many requests, each served as the same request over HTTP is.

A message is handed to the application as a request of its own, so that keys, limits and errors are the same; what is
streamed for it is sent on with its id.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from fastapi import APIRouter
from fastapi.responses import Response
from starlette.types import ASGIApp, Message, Scope
from starlette.websockets import WebSocket, WebSocketDisconnect

from .errors import ApiError, failed

PATHS = {"messages": "/v1/chat/completions", "prompt": "/v1/completions"}
"""A field that a message has -> where it is sent."""

AT_ONCE = 64
"""Requests of one connection that may be open."""

LONGEST_ID = 128
KEY_SECONDS = 10.0
"""How long a client without a key in its headers may take to send one."""

POLICY, UNSUPPORTED = 1008, 1003
"""Codes of a close (RFC 6455, section 7.4.1): a rule is broken; data of a kind that is not taken."""

OWN = (b"authorization", b"connection", b"content-", b"host", b"sec-websocket-", b"upgrade", b"x-request-id")
"""Beginnings of names of headers that requests do not have from the connection."""

DATA, DONE, BROKEN = b"data: ", b"[DONE]", b'{"error":'
"""How events of a stream begin; what its last one holds; what one holds that ends it before."""


def routes() -> APIRouter:
    """The path."""
    router = APIRouter()

    @router.websocket("/v1/stream")
    async def stream(websocket: WebSocket) -> None:
        await Connection(websocket).serve()

    return router


class Call:
    """One request to the application: the two ends of ASGI.

    Attributes:
        status: of the answer; 0 before there is one.
        headers: of the answer.
        body: of an answer that is no stream.
        broken: whether a stream ended with an error.

    Args:
        body: of the request.
        tell: is given the data of each event of a stream.
    """

    def __init__(self, body: bytes, tell: Callable[[bytes], Awaitable[None]] | None = None) -> None:
        self.status, self.headers, self.body, self.broken = 0, dict[str, str](), b"", False
        self._request: bytes | None = body
        self._tell, self._unread = tell, b""
        self._gone = asyncio.Event()

    def cancel(self) -> None:
        """As if the client had gone."""
        self._gone.set()

    @property
    def cancelled(self) -> bool:
        """Whether it was."""
        return self._gone.is_set()

    async def receive(self) -> Message:
        """What the application reads: the request, and at some time that nobody waits any more."""
        if self._request is not None:
            body, self._request = self._request, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """What the application answers."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in message["headers"]}
        elif self._tell and self.headers.get("content-type", "").startswith("text/event-stream"):
            *events, self._unread = (self._unread + message.get("body", b"")).split(b"\n\n")
            for event in events:
                await self._tell(event.removeprefix(DATA))
        else:
            self.body += message.get("body", b"")


class Connection:
    """One client."""

    def __init__(self, websocket: WebSocket) -> None:
        self._websocket = websocket
        self._app: ASGIApp = websocket.scope["app"]
        given = websocket.scope["headers"]
        self._key = next((value for name, value in given if name == b"authorization"), b"")
        self._headers = [(name, value) for name, value in given if not name.startswith(OWN)]
        self._open: dict[str | int, Call] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self) -> None:
        """Serve requests until the client goes."""
        if not await self._enter():
            return
        try:
            while True:
                message = await self._websocket.receive()
                if message["type"] == "websocket.disconnect":
                    return
                text = message.get("text")
                if text is None:
                    await self._websocket.close(UNSUPPORTED, "messages are JSON as text")
                    return
                await self._take(text)
        finally:
            for call in self._open.values():
                call.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _enter(self) -> bool:
        """Let a client in that has a key: in its headers, or in its first message."""
        refusal = await self._refusal()
        if refusal and (self._key or refusal.status_code != 401):  # it loads, drains, or a limit is reached
            await self._websocket.send_denial_response(refusal)
            return False
        await self._websocket.accept()
        if not refusal:
            return True
        try:
            first = json.loads(await asyncio.wait_for(self._websocket.receive_text(), KEY_SECONDS))
            self._key = f"Bearer {first['api_key']}".encode()
        except WebSocketDisconnect:
            return False
        except (asyncio.TimeoutError, KeyError, RecursionError, TypeError, ValueError):
            pass  # the key is missing, and refused as such
        if await self._refusal():
            await self._websocket.close(POLICY, "the API key is missing or wrong")
            return False
        return True

    async def _refusal(self) -> Response | None:
        """What the client's requests are answered for want of a key."""
        call = Call(b"")
        await self._app(self._scope("GET", "/v1/models"), call.receive, call.send)
        return None if call.status < 400 else Response(call.body, call.status, call.headers)

    def _scope(self, method: str, path: str) -> Scope:
        scope = self._websocket.scope
        headers = [*self._headers, (b"content-type", b"application/json")]
        return {
            "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": method,
            "scheme": scope["scheme"].replace("ws", "http"), "path": path, "raw_path": path.encode(),
            "query_string": b"", "root_path": scope.get("root_path", ""), "client": scope.get("client"),
            "server": scope.get("server"), "state": scope.get("state", {}),
            "headers": [*headers, (b"authorization", self._key)] if self._key else headers,
        }  # fmt: skip

    async def _take(self, text: str) -> None:
        """Begin what a message asks, or cancel it."""
        number = None
        try:
            body = _object(text)
            number = _id(body)
            if body.get("cancel") is True:
                if number in self._open:
                    self._open[number].cancel()
                return
            path = next((path for field, path in PATHS.items() if field in body), None)
            if path is None:
                raise ApiError(400, f"the message has none of {', '.join(PATHS)}")
            if number in self._open:
                raise ApiError(400, "another request with this id is open", param="id")
            if len(self._open) >= AT_ONCE:
                raise ApiError(429, f"{AT_ONCE} requests of this connection are open", code="too_many_requests")
        except ApiError as error:
            await self._say(number, "error", status=error.status, **error.body)
            return
        call = Call(json.dumps({**body, "stream": True}).encode(), partial(self._tell, number))
        self._open[number] = call
        task = asyncio.create_task(self._answer(number, path, call))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, number: str | int, path: str, call: Call) -> None:
        """Serve a request, and tell how it ended."""
        try:
            await self._app(self._scope("POST", path), call.receive, call.send)
        except Exception as error:  # it is raised even if it was answered
            if call.status < 400:
                call.status, call.body = 500, json.dumps(failed(error).body).encode()
        finally:
            del self._open[number]
        if call.cancelled:
            await self._say(number, "done", cancelled=True)
        elif call.status != 200:
            retry = {name: value for name, value in call.headers.items() if name == "retry-after"}
            await self._say(number, "error", status=call.status, **json.loads(call.body), **retry)
        elif not call.broken:
            await self._say(number, "done")

    async def _tell(self, number: str | int, data: bytes) -> None:
        """Send an event of a stream on."""
        if data.startswith(BROKEN):
            self._open[number].broken = True
            await self._say(number, "error", status=500, **json.loads(data))
        elif data != DONE:
            await self._send(f'{{"id": {json.dumps(number)}, "event": "token", "data": {data.decode()}}}')

    async def _say(self, number: str | int | None, event: str, **more: Any) -> None:
        await self._send(json.dumps({"id": number, "event": event, **more}))

    async def _send(self, text: str) -> None:
        try:
            await self._websocket.send_text(text)
        except (RuntimeError, WebSocketDisconnect):  # the client has gone
            for call in self._open.values():
                call.cancel()


def _object(text: str) -> dict[str, Any]:
    """The object that a message holds.

    Raises:
        ApiError: it holds something else.
    """
    try:
        body = json.loads(text)
    except (RecursionError, ValueError):
        raise ApiError(400, "the message is no JSON") from None
    if not isinstance(body, dict):
        raise ApiError(400, "the message is no object")
    return body


def _id(body: dict[str, Any]) -> str | int:
    """Take the id out of a message.

    Raises:
        ApiError: there is none, or it is neither a short text nor a whole number.
    """
    number = body.pop("id", None)
    if type(number) not in (str, int) or len(str(number)) > LONGEST_ID:
        what = f"id is neither a text of at most {LONGEST_ID} characters nor a whole number"
        raise ApiError(400, what, param="id")
    assert isinstance(number, str | int)
    return number
