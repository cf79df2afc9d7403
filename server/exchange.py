"""A request and its answer, as limits, logs, metrics and traces see them."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from typing import Any, TypeVar

from starlette.datastructures import Headers
from starlette.types import Scope

from deepzig.runtime import Generation
from deepzig.runtime.chat import ChatGeneration

from .ledgers import Account
from .limits import RequestLimits

REQUEST_ID = "x-request-id"
LONGEST_ID = 128
"""Characters of a client's own request id that are taken over."""

Asked = TypeVar("Asked", Generation, ChatGeneration)


class Exchange:
    """One request; all that a model is asked for it goes through `submit`.

    Args:
        scope: of ASGI.
        limits: what it may ask for.

    Attributes:
        id: of the request: the client's own if it sent one that can be shown.
        method: of HTTP.
        path: that was asked for, as the client wrote it.
        began: when it came, in seconds of `time.perf_counter`.
        status: of the answer; 499 if the client went before there was one.
        address: whose it is.
        key: the name of the key that let it in.
        model: that it asked.
        account: what it takes of limits; None before it was let in.
        body: what was sent.
    """

    def __init__(self, scope: Scope, limits: RequestLimits) -> None:
        given = Headers(scope=scope).get(REQUEST_ID, "")
        fits = given.isascii() and given.isprintable() and 0 < len(given) <= LONGEST_ID
        self.id = given if fits else uuid.uuid4().hex
        self._scope = scope
        self.method: str = scope.get("method", "WEBSOCKET")
        self.path: str = scope["path"]
        self.began = time.perf_counter()
        self.status = 499
        self.address = ""
        self.key: str | None = None
        self.model: str | None = None
        self.account: Account | None = None
        self.body = b""
        self._limits, self._answers, self._ended = limits, 0, False
        self._asked: list[Generation] = []
        self._lock = threading.Lock()

    def submit(self, submit: Callable[..., Asked], prompt: Any, **options: Any) -> Asked:
        """Ask a model, if limits let it.

        Args:
            submit: `Model.submit` or `Model.submit_chat`.
            prompt: its first argument.
            options: its others.

        Raises:
            ApiError: a limit is reached (429), or the request asks for too much (400).
            DeepZigError: as `submit`.
        """
        made = submit(prompt, **self._limits.applied(options), admit=self.admit)
        self.watch(made.generation if isinstance(made, ChatGeneration) else made)
        return made

    def watch(self, generation: Generation) -> None:
        """Count what is made of something that was asked, and cancel it at the end of the request."""
        with self._lock:
            self._asked.append(generation)
            if self._ended:
                generation.cancel()

    def admit(self, prompt: int, answer: int, answers: int) -> None:
        """Whether a model may be asked that much; as `Model.submit` wants to be told.

        Raises:
            ApiError: it may not (429, 400).
        """
        self._answers += answers
        self._limits.check(prompt, answer, self._answers)
        if self.account:
            self.account.reserve(prompt + answer * answers)

    def end(self) -> None:
        """It is over: what is not answered by now is cancelled, and limits learn what was used."""
        with self._lock:
            self._ended = True
            for one in self._asked:
                one.cancel()
        if self.account:
            self.account.close(self.prompt_tokens + self.answer_tokens)

    @property
    def route(self) -> str | None:
        """The pattern of the path that answers, if one does."""
        return getattr(self._scope.get("route"), "path", None)

    @property
    def seconds(self) -> float:
        """How long it has taken."""
        return time.perf_counter() - self.began

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts."""
        return sum(len(one.request.prompt) for one in self._asked)

    @property
    def answer_tokens(self) -> int:
        """Tokens of all answers."""
        return sum(one.made for one in self._asked)

    @property
    def first_token(self) -> float | None:
        """Seconds from the request's coming to its first token, if it had one."""
        first = [one.first_at for one in self._asked if one.first_at is not None]
        return min(first) - self.began if first else None

    @property
    def per_token(self) -> float | None:
        """Seconds from one token of an answer to the next, on average, if it had several."""
        first = self.first_token
        steps = self.answer_tokens - self._answers
        if first is None or steps <= 0:
            return None
        begun = [(one, one.first_at) for one in self._asked if one.first_at is not None]
        return sum((one.last_at - at) * one.request.options.n for one, at in begun) / steps
