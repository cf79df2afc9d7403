"""`POST /v1/completions`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

from deepzig.runtime import Generation
from deepzig.runtime.result import END
from deepzig.runtime.tokenizer import Tokenizer

from .replies import Head, TextLogprobs, Usage


async def whole(head: Head, generations: Sequence[Generation], tokenizer: Tokenizer) -> dict[str, Any]:
    """The answers to all prompts as one object."""
    usage = Usage(generations)
    choices: list[dict[str, Any]] = []
    for generation in generations:
        for choice in (await generation.aresult()).choices:
            usage.add(len(choice.token_ids))
            logprobs = None if choice.logprobs is None else TextLogprobs(tokenizer).part(choice.logprobs)
            choices.append(_choice(len(choices), choice.text, logprobs, choice.finish_reason))
    return {**head.start(), "choices": choices, "usage": usage.as_dict()}


async def chunks(
    head: Head, generations: Sequence[Generation], tokenizer: Tokenizer, include_usage: bool
) -> AsyncIterator[dict[str, Any]]:
    """The answers in parts, those to one prompt after those to another; all of them are made at once."""
    start = {**head.start(), **({"usage": None} if include_usage else {})}
    usage, first = Usage(generations), 0
    for generation in generations:
        count = generation.request.options.n
        logprobs = [TextLogprobs(tokenizer) for _ in range(count)]
        async for index, piece in generation:
            usage.add(piece.token_id != END)
            told = logprobs[index].part([piece.logprob]) if piece.logprob else None
            if piece.text or told or piece.finish_reason:
                yield {**start, "choices": [_choice(first + index, piece.text, told, piece.finish_reason)]}
        first += count
    if include_usage:
        yield {**start, "choices": [], "usage": usage.as_dict()}


def _choice(index: int, text: str, logprobs: dict[str, Any] | None, finish_reason: str | None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}
