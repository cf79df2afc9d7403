"""`POST /v1/completions`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from deepzig.runtime import Generation, Model, SamplingOptions
from deepzig.runtime.engine.reading import Score
from deepzig.runtime.result import END
from deepzig.runtime.tokenizer import Tokenizer

from .bodies import JsonRoute
from .events import EventStream, unless_gone
from .exchange import Exchange
from .replies import Head, TextLogprobs, Usage
from .requests import CompletionRequest
from .schemas import STREAMED, Completion
from .served import Catalogue


def routes(catalogue: Catalogue) -> APIRouter:
    """The path, over the models that are served."""
    router = APIRouter(route_class=JsonRoute)

    @router.post("/v1/completions", response_model=Completion, responses=STREAMED)
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """Continuations of texts or token ids."""
        served, exchange = catalogue.asked(body.model, request)
        asked = await asyncio.to_thread(_submit_all, exchange, served.model, body)

        def cancel() -> None:
            for one in asked:
                one.cancel()

        head = served.head("cmpl", "text_completion")
        if body.stream:
            events = chunks(head, asked, served.model.tokenizer, body.include_usage)
            return EventStream(events, cancel)
        answer = whole(head, asked, served.model.tokenizer)
        return JSONResponse(await unless_gone(request, answer, cancel))

    return router


@dataclass(frozen=True)
class Asked:
    """What was asked about one prompt.

    Attributes:
        choices: how many continuations are wanted.
        echo: what they begin with: the prompt's text, or nothing.
        tokens: of the prompt.
        generation: makes the continuations; None if they have no tokens.
        scoring: reads the prompt for `score`; None if its log-probabilities are not wanted.
        score: the log-probabilities of the prompt, once it is read.
    """

    choices: int
    echo: str
    tokens: list[int]
    generation: Generation | None
    scoring: Generation | None
    score: Score | None

    def cancel(self) -> None:
        """Make nothing more of it."""
        for one in (self.generation, self.scoring):
            if one:
                one.cancel()

    @property
    def read(self) -> Generation:
        """What tells how the prompt was read."""
        one = self.generation or self.scoring
        assert one
        return one


@dataclass
class Part:
    """What is added to one of all answers."""

    index: int
    text: str = ""
    logprobs: dict[str, list[Any]] | None = None
    finish_reason: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """As an entry of `choices`."""
        return dict(vars(self))

    def add(self, part: Part) -> None:
        """Go on with the next part of the same answer."""
        self.text += part.text
        self.finish_reason = part.finish_reason
        for name, values in (part.logprobs or {}).items():
            self.logprobs = self.logprobs or {}
            self.logprobs.setdefault(name, []).extend(values)


def _submit_all(exchange: Exchange, model: Model, body: CompletionRequest) -> list[Asked]:
    """Submit all prompts, or none of them."""
    options = body.options()
    with ExitStack() as stack:
        asked = [_submit(exchange, model, prompt, body, options, stack) for prompt in body.prompts()]
        stack.pop_all()
    return asked


def _submit(
    exchange: Exchange, model: Model, prompt: str | list[int], body: CompletionRequest, options: Mapping[str, Any],
    stack: ExitStack,
) -> Asked:  # fmt: skip
    tokens = model.encode(prompt) if isinstance(prompt, str) else prompt
    generation = scoring = score = None
    silent = body.echo and body.max_tokens == 0
    if silent:
        sampling = {name: value for name, value in options.items() if name not in ("priority", "cache_salt")}
        SamplingOptions.parse({**sampling, "max_tokens": 1})  # checks the others
    else:
        generation = stack.enter_context(exchange.submit(model.submit, tokens, **options))
    if silent or (body.echo and body.logprobs is not None):
        scoring, score = model.submit_score(
            tokens, body.logprobs or 0, priority=body.priority, admit=exchange.admit
        )  # fmt: skip
        exchange.watch(stack.enter_context(scoring))
    text = prompt if isinstance(prompt, str) else model.tokenizer.decode(prompt, skip_special=False)
    shown = score if body.logprobs is not None else None
    return Asked(body.n or 1, text if body.echo else "", tokens, generation, scoring, shown)


async def whole(head: Head, asked: Sequence[Asked], tokenizer: Tokenizer) -> dict[str, Any]:
    """The answers to all prompts as one object."""
    usage = Usage([one.read for one in asked])
    choices: dict[int, Part] = {}
    async for part in _parts(asked, tokenizer, usage):
        choices.setdefault(part.index, Part(part.index)).add(part)
    told = [choices[index].as_dict() for index in sorted(choices)]
    return {**head.start(), "choices": told, "usage": usage.as_dict()}


async def chunks(
    head: Head, asked: Sequence[Asked], tokenizer: Tokenizer, include_usage: bool
) -> AsyncIterator[dict[str, Any]]:
    """The answers in parts, those to one prompt after those to another; all of them are made at once."""
    start = {**head.start(), **({"usage": None} if include_usage else {})}
    usage = Usage([one.read for one in asked])
    async for part in _parts(asked, tokenizer, usage):
        if part.text or part.logprobs or part.finish_reason:
            yield {**start, "choices": [part.as_dict()]}
    if include_usage:
        yield {**start, "choices": [], "usage": usage.as_dict()}


async def _parts(asked: Sequence[Asked], tokenizer: Tokenizer, usage: Usage) -> AsyncIterator[Part]:
    first = 0
    for one in asked:
        logprobs = [TextLogprobs(tokenizer) for _ in range(one.choices)]
        if one.scoring:
            await one.scoring.await_end()
        end = None if one.generation else "length"
        if one.echo or end:
            for index in range(one.choices):
                told = logprobs[index].part(one.tokens, one.score.logprobs) if one.score else None
                yield Part(first + index, one.echo, told, end)
        if one.generation:
            async for index, piece in one.generation:
                usage.add(piece.token_id != END)
                one_token = piece.logprob
                told = logprobs[index].part([one_token.token_id], [one_token]) if one_token else None
                yield Part(first + index, piece.text, told, piece.finish_reason)
        first += one.choices
