"""What a single request may ask for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .errors import ApiError


@dataclass(frozen=True)
class RequestLimits:
    """How much one request may be; None is no limit but the model's.

    Attributes:
        body: bytes of it.
        body_seconds: in which its body has to come.
        seconds: in which it has to be answered.
        prompt_tokens: of each prompt.
        answer_tokens: of each answer; also what is meant where a request names no limit.
        answers: to all of its prompts together.
    """

    body: int = 4 << 20
    body_seconds: float = 30.0
    seconds: float | None = None
    prompt_tokens: int | None = None
    answer_tokens: int | None = None
    answers: int = 128

    def applied(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Options for `Model.submit`, with a limit of the answer where there is one."""
        named = any(options.get(name) is not None for name in ("max_tokens", "max_completion_tokens"))
        return {**options} if named or not self.answer_tokens else {**options, "max_tokens": self.answer_tokens}

    def check(self, prompt: int, answer: int, answers: int) -> None:
        """Whether a request may be that much.

        Args:
            prompt: tokens of a prompt.
            answer: the most tokens of an answer.
            answers: their number.

        Raises:
            ApiError: it may not (400).
        """
        checks = (
            ("prompt", "the prompt", "tokens", prompt, self.prompt_tokens),
            ("max_tokens", "an answer", "tokens", answer, self.answer_tokens),
            ("n", "the request", "answers", answers, self.answers),
        )
        for param, what, unit, amount, limit in checks:
            if limit is not None and amount > limit:
                code = "limit_exceeded"
                raise ApiError(400, f"{what} may have {limit} {unit}, not {amount}", param=param, code=code)
