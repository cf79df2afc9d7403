"""Answers to chat messages, taken apart: what a model says, what it thought, and the tools that it calls."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, replace

from .engine import Generation
from .parsers import Delta, Parser
from .result import END, Piece, Result

CALLED = "tool_calls"
"""The finish_reason of an answer that calls tools."""


@dataclass(frozen=True)
class ToolCall:
    """A call of a tool.

    Attributes:
        id: of the call.
        name: the function's.
        arguments: what the model wrote: JSON, unless it was cut short or erred.
    """

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class Message:
    """One answer.

    Attributes:
        content: what is said.
        reasoning_content: what was thought before.
        tool_calls: calls of tools, in order.
        finish_reason: `stop`, `length` or `tool_calls`.
    """

    content: str
    reasoning_content: str
    tool_calls: tuple[ToolCall, ...]
    finish_reason: str


@dataclass(frozen=True)
class ChatPiece:
    """What came with one token.

    Attributes:
        index: of which answer.
        deltas: what it adds to it.
        piece: as `Model.stream` has it.
        reasoning: whether the token belongs to the reasoning, its marks included.
    """

    index: int
    deltas: tuple[Delta, ...]
    piece: Piece
    reasoning: bool = False


@dataclass(frozen=True)
class ChatResult(Message):
    """The first answer, and all of them.

    Attributes:
        messages: the `n` answers.
        result: their tokens, and counts.
    """

    messages: tuple[Message, ...]
    result: Result


class ChatGeneration:
    """The answers to chat messages while they are made; used as `Generation` is."""

    def __init__(self, generation: Generation, parsers: Sequence[Parser]) -> None:
        self.generation = generation
        self._parsers = parsers

    def cancel(self) -> None:
        """Make nothing more of it."""
        self.generation.cancel()

    def __enter__(self) -> ChatGeneration:
        return self

    def __exit__(self, *_: object) -> None:
        self.generation.__exit__()

    def __iter__(self) -> Iterator[ChatPiece]:
        """Pieces, until all answers have ended.

        Raises:
            DeepZigError: the model failed.
        """
        return (self._parsed(index, piece) for index, piece in self.generation)

    async def __aiter__(self) -> AsyncIterator[ChatPiece]:
        """As `__iter__`, without blocking the event loop."""
        async for index, piece in self.generation:
            yield self._parsed(index, piece)

    def result(self) -> ChatResult:
        """Wait for all answers.

        Raises:
            DeepZigError: the model failed.
        """
        return self.result_of(list(self))

    async def aresult(self) -> ChatResult:
        """As `result`, without blocking the event loop."""
        return self.result_of([piece async for piece in self])

    def result_of(self, pieces: list[ChatPiece]) -> ChatResult:
        """The result, given all pieces of answers that have ended."""
        result = self.generation.result_of([(one.index, one.piece) for one in pieces])
        messages = tuple(
            _message([one for one in pieces if one.index == index]) for index in range(len(result.choices))
        )
        return ChatResult(**vars(messages[0]), messages=messages, result=result)

    def _parsed(self, index: int, piece: Piece) -> ChatPiece:
        parser = self._parsers[index]
        if piece.token_id == END:
            return ChatPiece(index, tuple(parser.finish(piece.text)), self._called(parser, piece))
        reasoning = parser.reasoning
        deltas = parser.push(piece.token_id, piece.text)
        reasoning |= parser.reasoning
        if piece.finish_reason:
            deltas += parser.finish()
        return ChatPiece(index, tuple(deltas), self._called(parser, piece), reasoning)

    def _called(self, parser: Parser, piece: Piece) -> Piece:
        called = piece.finish_reason == "stop" and parser.calls > 0
        return replace(piece, finish_reason=CALLED) if called else piece


def _message(pieces: list[ChatPiece]) -> Message:
    deltas = [delta for one in pieces for delta in one.deltas]
    calls: dict[int, ToolCall] = {}
    for call in (delta.call for delta in deltas if delta.call):
        known = calls.get(call.index, ToolCall("", "", ""))
        calls[call.index] = ToolCall(
            known.id or call.id or "", known.name or call.name or "", known.arguments + call.arguments
        )
    return Message(
        content="".join(delta.content for delta in deltas),
        reasoning_content="".join(delta.reasoning for delta in deltas),
        tool_calls=tuple(calls[index] for index in sorted(calls)),
        finish_reason=pieces[-1].piece.finish_reason or "length",
    )
