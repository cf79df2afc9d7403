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
            "id": new_id(self.prefix), "object": self.kind, "created": int(time.time()),
            "model": self.model, "system_fingerprint": self.fingerprint,
        }  # fmt: skip


def new_id(prefix: str) -> str:
    """An id that nothing else has."""
    return f"{prefix}-{secrets.token_hex(12)}"


class Usage:
    """Counts the tokens of the answers to one request.

    Attributes:
        prompts: tokens of all prompts.
    """

    def __init__(self, generations: Sequence[Generation]) -> None:
        self._generations, self._completion, self._reasoning = generations, 0, 0

    def add(self, tokens: int, reasoning: int = 0) -> None:
        """Count tokens that were made, and how many of them are reasoning."""
        self._completion += tokens
        self._reasoning += reasoning

    def as_dict(self) -> dict[str, Any]:
        """The object `usage`; complete when all answers have ended."""
        prompt = sum(len(one.request.prompt) for one in self._generations)
        cached = sum(one.request.cached for one in self._generations)
        return {
            "prompt_tokens": prompt, "completion_tokens": self._completion, "total_tokens": prompt + self._completion,
            "prompt_tokens_details": {"cached_tokens": cached},
            "completion_tokens_details": {"reasoning_tokens": self._reasoning},
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

    def part(self, tokens: Sequence[int], entries: Sequence[TokenLogprob | None]) -> dict[str, Any]:
        """The object for the next tokens, with an entry for each; the first token of a prompt has none."""
        texts = [self._text(token) for token in tokens]
        offsets = []
        for text in texts:
            offsets.append(self._offset)
            self._offset += len(text)
        return {
            "tokens": texts,
            "token_logprobs": [one and max(one.logprob, LEAST) for one in entries],
            "top_logprobs": [one and self._top(one) for one in entries],
            "text_offset": offsets,
        }

    def _top(self, one: TokenLogprob) -> dict[str, float]:
        """The likeliest tokens and the one that stands there, as OpenAI's API has them."""
        likely = [*one.top, (one.token_id, one.logprob)] if one.top else []
        told: dict[str, float] = {}
        for token, value in likely:  # several tokens may be shown alike: the likeliest counts
            told.setdefault(self._text(token), max(value, LEAST))
        return told
