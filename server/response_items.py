"""The items of a response as they grow, and the events that tell of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from deepzig.runtime import TokenLogprob
from deepzig.runtime.chat import ChatPiece
from deepzig.runtime.parsers import Delta
from deepzig.runtime.result import END
from deepzig.runtime.tokenizer import Tokenizer

from .replies import chat_logprobs, new_id

REASONING, MESSAGE, CALL = "reasoning", "message", "function_call"

PARTS = {REASONING: "reasoning_text", MESSAGE: "output_text"}
"""Type of an item -> type of its only part, which gives its events their names."""


class Items:
    """Makes items of the pieces of an answer.

    Events share the items, which grow: whoever keeps an event for later has to copy it.

    Attributes:
        items: as OpenAI's API has them; the last one grows.

    Args:
        tokenizer: the model's.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.items: list[dict[str, Any]] = []
        self._tokenizer = tokenizer
        self._untold: list[TokenLogprob] = []  # log-probabilities of tokens whose text has not come

    def add(self, one: ChatPiece) -> Iterator[dict[str, Any]]:
        """Take a piece; gives the events of what it changes."""
        if one.piece.logprob and one.piece.token_id != END and not one.reasoning:
            self._untold.append(one.piece.logprob)
        for delta in one.deltas:
            yield from self._begin(delta)
            yield from self._grow(delta)

    def close(self, status: str) -> Iterator[dict[str, Any]]:
        """The answer has ended; gives the events that end the last item.

        Args:
            status: of that item: `completed` or `incomplete`.
        """
        if not self.items:
            return
        item, at = self.items[-1], self._place()
        item["status"] = status
        if item["type"] == CALL:
            yield {
                "type": "response.function_call_arguments.done", **at, "name": item["name"],
                "arguments": item["arguments"],
            }  # fmt: skip
        else:
            [part] = item["content"]
            kind = part["type"]
            logprobs = {"logprobs": part["logprobs"]} if kind == PARTS[MESSAGE] else {}
            yield {"type": f"response.{kind}.done", **at, "content_index": 0, "text": part["text"], **logprobs}
            yield {"type": "response.content_part.done", **at, "content_index": 0, "part": part}
        yield {"type": "response.output_item.done", "output_index": at["output_index"], "item": item}

    def _begin(self, delta: Delta) -> Iterator[dict[str, Any]]:
        """Begin another item, if a delta needs one."""
        kind = CALL if delta.call else REASONING if delta.reasoning else MESSAGE
        named = delta.call is not None and delta.call.id is not None
        if self.items and self.items[-1]["type"] == kind and not named:
            return
        yield from self.close("completed")
        item: dict[str, Any] = {"type": kind, "status": "in_progress"}
        if delta.call:
            self._untold.clear()
            item |= {"id": new_id("fc"), "call_id": delta.call.id, "name": delta.call.name, "arguments": ""}
        elif kind == REASONING:
            item |= {"id": new_id("rs"), "summary": [], "content": []}
        else:
            item |= {"id": new_id("msg"), "role": "assistant", "content": []}
        self.items.append(item)
        yield {"type": "response.output_item.added", "output_index": len(self.items) - 1, "item": item}
        if kind != CALL:
            more: dict[str, Any] = {"annotations": [], "logprobs": []} if kind == MESSAGE else {}
            part = {"type": PARTS[kind], "text": "", **more}
            item["content"].append(part)
            yield {"type": "response.content_part.added", **self._place(), "content_index": 0, "part": part}

    def _grow(self, delta: Delta) -> Iterator[dict[str, Any]]:
        """Add a delta to the last item."""
        item, at = self.items[-1], self._place()
        if delta.call:
            item["arguments"] += delta.call.arguments
            if delta.call.arguments:
                yield {"type": "response.function_call_arguments.delta", **at, "delta": delta.call.arguments}
            return
        text, [part] = delta.reasoning or delta.content, item["content"]
        part["text"] += text
        event = {"type": f"response.{part['type']}.delta", **at, "content_index": 0, "delta": text}
        if item["type"] == MESSAGE:
            told = chat_logprobs(self._untold, self._tokenizer)["content"]
            self._untold.clear()
            part["logprobs"] = part["logprobs"] + told
            event["logprobs"] = told
        yield event

    def _place(self) -> dict[str, Any]:
        return {"item_id": self.items[-1]["id"], "output_index": len(self.items) - 1}
