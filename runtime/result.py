"""What a model answers."""

from __future__ import annotations

from dataclasses import dataclass, field

from .sampling import TokenLogprob

END = -1
"""The token_id of a piece with the rest of the text after an end token; its `logprob` is that of the end token."""


@dataclass(frozen=True)
class Choice:
    """One answer.

    Attributes:
        text: what the tokens say, up to where it ended.
        token_ids: the generated tokens, the end token not among them.
        finish_reason: `stop` (an end token or a stop text) or `length`.
        logprobs: one entry a token, if they were asked for.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    logprobs: tuple[TokenLogprob, ...] | None


@dataclass(frozen=True)
class Result(Choice):
    """The first answer, and all of them.

    Attributes:
        prompt_tokens: length of the prompt in tokens.
        choices: the `n` answers.
        cached_tokens: how many tokens of the prompt the cache had already, from a prompt that began alike; makes no
            difference between two results.
        guessed_tokens: tokens that were guessed ahead, with the option `speculate`.
        accepted_tokens: how many of the guesses were right.
    """

    prompt_tokens: int
    choices: tuple[Choice, ...]
    cached_tokens: int = field(default=0, compare=False)
    guessed_tokens: int = 0
    accepted_tokens: int = 0


@dataclass(frozen=True)
class Piece:
    """One token of an answer and the text that may be shown since; the last piece has a finish_reason."""

    text: str
    token_id: int
    logprob: TokenLogprob | None = None
    finish_reason: str | None = None
