"""Parts of answers that chat and plain completions share."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from deepzig.runtime import Generation, TokenLogprob
from deepzig.runtime.tokenizer import Tokenizer

LEAST = -9999.0
"""Stands for the log-probability of what is impossible, since JSON has no infinity; OpenAI's API has the same."""


@dataclass(frozen=True)
class Head:
    """What all parts of one answer share.

    Attributes:
        prefix: of the id: `chatcmpl` or `cmpl`.
        kind: the value of `object`.
        model: the name of the model.
        fingerprint: of what answers; the same seed gives the same answer only with the same one.
    """

    prefix: str
    kind: str
    model: str
    fingerprint: str

    def start(self) -> dict[str, Any]:
        """Fields of the answer, with a new id."""
        return {
            "id": f"{self.prefix}-{secrets.token_hex(12)}", "object": self.kind, "created": int(time.time()),
            "model": self.model, "system_fingerprint": self.fingerprint,
        }  # fmt: skip


class Usage:
    """Counts the tokens of the answers to one request."""

    def __init__(self, generations: Sequence[Generation]) -> None:
        self._generations, self._completion = generations, 0

    def add(self, tokens: int) -> None:
        """Count tokens that were made."""
        self._completion += tokens

    def as_dict(self) -> dict[str, Any]:
        """The object `usage`; complete when all answers have ended."""
        prompt = sum(len(one.request.prompt) for one in self._generations)
        cached = sum(one.request.cached for one in self._generations)
        return {
            "prompt_tokens": prompt, "completion_tokens": self._completion, "total_tokens": prompt + self._completion,
            "prompt_tokens_details": {"cached_tokens": cached},
        }  # fmt: skip


def chat_logprobs(entries: Iterable[TokenLogprob], tokenizer: Tokenizer) -> dict[str, Any]:
    """The object `logprobs` of a chat answer."""

    def entry(token: int, logprob: float) -> dict[str, Any]:
        raw = tokenizer.token_bytes(token)
        return {"token": raw.decode(errors="replace"), "logprob": max(logprob, LEAST), "bytes": list(raw)}

    content = [
        {**entry(one.token_id, one.logprob), "top_logprobs": [entry(token, value) for token, value in one.top]}
        for one in entries
    ]
    return {"content": content, "refusal": None}


class TextLogprobs:
    """The objects `logprobs` of one plain completion, whose offsets go on from part to part.

    Offsets are in characters of the tokens' own texts, a token with part of a character counting as it is shown.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self._offset = tokenizer, 0

    def _text(self, token: int) -> str:
        return self._tokenizer.token_bytes(token).decode(errors="replace")

    def part(self, entries: Iterable[TokenLogprob]) -> dict[str, Any]:
        """The object for the next tokens."""
        part: dict[str, list[Any]] = {name: [] for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")}
        for one in entries:
            text = self._text(one.token_id)
            part["tokens"].append(text)
            part["token_logprobs"].append(max(one.logprob, LEAST))
            part["top_logprobs"].append({self._text(token): max(value, LEAST) for token, value in one.top})
            part["text_offset"].append(self._offset)
            self._offset += len(text)
        return part
