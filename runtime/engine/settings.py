"""How an engine shares its model, and where it stands."""

from __future__ import annotations

from dataclasses import dataclass

from deepzig.errors import DeepZigError


class EngineBusyError(DeepZigError):
    """As many requests wait as are let; the caller may try again later."""


@dataclass(frozen=True)
class Settings:
    """How an engine shares its model.

    Attributes:
        max_running: the most answers that are made at a time; None for as many as a call takes.
        max_waiting: the most requests that wait; further ones are refused.
        step_tokens: rows of prompts and answers that a step reads; None for as many as a call takes.
        prefix_reuse: whether prompts use pages of others that begin alike.
    """

    max_running: int | None = None
    max_waiting: int = 4096
    step_tokens: int | None = None
    prefix_reuse: bool = True

    def __post_init__(self) -> None:
        for name in ("max_running", "max_waiting", "step_tokens"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise DeepZigError(f"{name} is {value!r}", f"option {name}", "give a whole number from 1")


@dataclass(frozen=True)
class Stats:
    """Where an engine stands; counts are since it was started.

    Attributes:
        running: answers that are made.
        waiting: answers that wait.
        pages: of the cache.
        pages_free: pages that can be taken.
        pages_kept: pages that are kept for prompts that begin alike.
        prompt_tokens: of prompts that were read.
        cached_tokens: of these, how many were found read.
        generated_tokens: that were drawn.
        guessed_tokens: that were guessed ahead.
        accepted_tokens: guesses that were right.
        preemptions: how often an answer lost its pages.
        steps: of the engine.
    """

    running: int
    waiting: int
    pages: int
    pages_free: int
    pages_kept: int
    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    guessed_tokens: int
    accepted_tokens: int
    preemptions: int
    steps: int
