"""Streams of server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

import orjson
from fastapi import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from .errors import ApiError, failed

DONE = b"data: [DONE]\n\n"
T = TypeVar("T")


class EventStream(StreamingResponse):
    """Sends objects as events, then `[DONE]`; an exception as an event with an error.

    Args:
        events: what to send; ends soon after it was cancelled.
        cancel: called when the client goes, and when the response has ended, in whichever way: the client may have
            gone before it began.
    """

    def __init__(self, events: AsyncIterator[dict[str, Any]], cancel: Callable[[], None]) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(self._encoded(events), media_type="text/event-stream", headers=headers)
        self._cancel = cancel

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response."""
        gone = asyncio.ensure_future(_gone(receive))
        gone.add_done_callback(lambda _: self._cancel())
        try:
            await self.stream_response(send)
        finally:
            gone.cancel()

    async def _encoded(self, events: AsyncIterator[dict[str, Any]]) -> AsyncIterator[bytes]:
        try:
            async for event in events:
                yield _event(event)
        except Exception as error:  # the status is sent already
            yield error_event(failed(error))
            return
        yield DONE


class NamedEventStream(EventStream):
    """As `EventStream`, the way of OpenAI's API for responses: events have a name, which is their type, and a number.

    The last of them is an end of its own kind, so nothing follows it.
    """

    async def _encoded(self, events: AsyncIterator[dict[str, Any]]) -> AsyncIterator[bytes]:
        number = 0
        try:
            async for event in events:
                yield _named(event, number)
                number += 1
        except Exception as error:
            told = failed(error).body["error"]
            yield _named({**told, "type": "error"}, number)


def _event(data: dict[str, Any]) -> bytes:
    return b"data: %b\n\n" % orjson.dumps(data)


def error_event(error: ApiError) -> bytes:
    """The event that ends a stream which can't go on."""
    return _event(error.body)


def _named(event: dict[str, Any], number: int) -> bytes:
    return f"event: {event['type']}\n".encode() + _event({**event, "sequence_number": number})


async def unless_gone(request: Request, work: Coroutine[Any, Any, T], cancel: Callable[[], None]) -> T:
    """Wait for an answer that is sent as a whole, and cancel it if the client goes.

    Raises:
        ApiError: the work's own, or that it failed; or the client has gone, and nobody reads it.
    """
    answer = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request.receive))
    try:
        await asyncio.wait((answer, gone), return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise ApiError(499, "the client has gone")
        try:
            return answer.result()
        except ApiError:
            raise
        except Exception as error:
            raise failed(error) from error
    finally:
        cancel()
        answer.cancel()
        gone.cancel()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
