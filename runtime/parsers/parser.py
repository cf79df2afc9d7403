"""Reasoning and calls of tools out of a stream of tokens. The tokens decide, and not what the text looks like."""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from deepzig.runtime.tokenizer import Tokenizer

from .formats import THINK, Format, Mark, format_for, is_thinking, known_marks


@dataclass(frozen=True)
class CallDelta:
    """A piece of a call of a tool, as in OpenAI's streams.

    Attributes:
        index: which call of the answer it is, from 0.
        id: of the call; in its first piece only, as `name` is.
        name: the function's.
        arguments: the next part of the JSON that the model wrote. It may be cut short, or no JSON, where the model is.
    """

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


@dataclass(frozen=True)
class Delta:
    """A piece of an answer: one of the three."""

    content: str = ""
    reasoning: str = ""
    call: CallDelta | None = None


class State(Enum):
    """Where in an answer a parser is."""

    START = auto()  # only blanks so far
    REASONING = auto()
    CONTENT = auto()
    BETWEEN = auto()  # in the section of calls, outside of them
    HEAD = auto()  # of a call, before its arguments
    ARGUMENTS = auto()


CALL_MARKS = frozenset({Mark.SECTION, Mark.END_SECTION, Mark.CALL, Mark.END_CALL})
"""These end the head and the arguments of a call, in order or not."""


class Parser:
    """Reads one answer.

    Texts may come later than their tokens (a detokenizer and a search for stop texts hold some back), never sooner.
    Where marks have a text, it may be late too.

    Attributes:
        format: how the model writes calls; None where it writes none, or there is nothing to call.
        ids: the tokens that mark something.
        calls: how many calls have begun.
        armed_after: tokens that end the reasoning, as `GuideFactory.guide` wants them; empty where there will be none.
        opened_by: likewise, the token that starts it, where the prompt has not.

    Args:
        tokenizer: the model's.
        format: how it writes calls.
        prompt: the tokens that the answer follows; they may have opened the reasoning.
        new_id: gives ids to calls, where the model does not.
    """

    def __init__(
        self, tokenizer: Tokenizer, format: Format | None, prompt: Sequence[int], new_id: Callable[[], str]
    ) -> None:
        think = known_marks(THINK, tokenizer)
        thinking = is_thinking(prompt, think, tokenizer)
        self.format = format
        self.ids = {**think, **(known_marks(format.marks, tokenizer) if format else {})}
        self.armed_after = (think[Mark.END_THINK],) if think and thinking is not False else ()
        self.opened_by = think[Mark.THINK] if think and thinking is None else None
        self.calls = 0
        self._new_id = new_id
        self._marks = {token: mark for mark, token in self.ids.items()}
        self._texts = {**THINK, **(format.marks if format else {})}
        self._shown = {mark for mark, token in self.ids.items() if tokenizer.decode([token])}
        self._state = State.REASONING if thinking else State.START
        self._after = State.CONTENT  # where the end of a call leads
        self._late: deque[Mark] = deque()  # their texts have not come yet
        self._unread = ""
        self._held = ""  # what can't be told yet: blanks, the head of a call, the end of its arguments
        self._separated = 0  # where in the head the separator ends

    @property
    def reasoning(self) -> bool:
        """Whether what comes next is reasoning, as far as is known."""
        return self._state is State.REASONING

    def push(self, token: int, text: str) -> list[Delta]:
        """What is known more, after a token and the text that came with it."""
        if token in self._marks:
            self._late.append(self._marks[token])
        return self._read(text)

    def finish(self, text: str = "") -> list[Delta]:
        """The rest, when no more tokens come: `text` is what was held back outside.

        The head of a call that was cut is content.
        """
        deltas = self._read(text)
        self._late.clear()  # their texts were cut off
        deltas += self._read("")
        return deltas + (self._end_call() if self._state is State.ARGUMENTS else self._flush())

    def _read(self, text: str) -> list[Delta]:
        """Text up to the next mark, and the mark, and so on; from a mark whose text has not come all of it waits."""
        self._unread += text
        deltas: list[Delta] = []
        while self._late:
            mark = self._late[0]
            shown = self._texts[mark] if mark in self._shown else ""
            at = self._unread.find(shown) if shown else len(self._unread)
            if at < 0:
                return deltas
            before, self._unread = self._unread[:at], self._unread[at + len(shown) :]
            self._late.popleft()
            deltas += self._write(before) + self._mark(mark)
        rest, self._unread = self._unread, ""
        return deltas + self._write(rest)

    def _write(self, text: str) -> list[Delta]:
        """Text in the state that is."""
        if not text:
            return []
        if self._state is State.REASONING:
            return [Delta(reasoning=text)]
        if self._state is State.CONTENT:
            return [Delta(content=text)]
        self._held += text
        if self._state is State.START and self._held.strip():
            return self._flush()
        if self._state is State.HEAD:
            return self._read_head()
        return self._argue() if self._state is State.ARGUMENTS else []

    def _mark(self, mark: Mark) -> list[Delta]:
        """A mark in the state that is; where it has no meaning it is text."""
        state = self._state
        if state is State.START and mark is Mark.THINK:
            self._state, held, self._held = State.REASONING, self._held, ""
            return self._write(held)
        if mark is Mark.END_THINK and state in (State.START, State.REASONING):
            return self._flush()
        if state is State.HEAD and mark in CALL_MARKS:
            self._held += self._texts[mark] if mark is Mark.END_CALL else ""
            return self._flush() + ([] if mark is Mark.END_CALL else self._mark(mark))
        if state is State.ARGUMENTS and mark in CALL_MARKS:
            return self._end_call() + ([] if mark is Mark.END_CALL else self._mark(mark))
        if state is State.HEAD and mark is Mark.SEPARATOR and not self._separated:
            self._held += self._texts[mark]
            self._separated = len(self._held)
            return self._read_head()
        if mark is Mark.CALL:
            deltas = self._flush()
            self._after = State.BETWEEN if state is State.BETWEEN else State.CONTENT
            self._state, self._held, self._separated = State.HEAD, self._texts[mark], 0
            return deltas
        if mark is Mark.SECTION and state is not State.BETWEEN:
            deltas = self._flush()
            self._state = State.BETWEEN
            return deltas
        if mark is Mark.END_SECTION and state is State.BETWEEN:
            deltas = self._flush()
            self._state = State.CONTENT
            return deltas
        return self._write(self._texts[mark])

    def _flush(self) -> list[Delta]:
        """What is held, as content, in the state that follows it; blanks between calls are theirs."""
        held, self._held = self._held, ""
        if self._state is State.BETWEEN:
            return [Delta(content=held)] if held.strip() else []
        self._state = self._after if self._state is State.HEAD else State.CONTENT
        return [Delta(content=held)] if held else []

    def _read_head(self) -> list[Delta]:
        """The start of a call, once its head is whole and right; else it goes on being held."""
        assert self.format is not None
        opening = self.format.after.partition("{name}")[2]
        at = self._held.find(opening, self._separated) if self._separated else -1
        if at < 0:
            return []
        end = at + len(opening)
        head = self.format.head.fullmatch(self._held, len(self._texts[Mark.CALL]), end)
        if head is None:
            return []
        found = head.groupdict()
        call = CallDelta(self.calls, found.get("id") or self._new_id(), found["name"])
        self.calls += 1
        self._state, self._held = State.ARGUMENTS, self._held[end:]
        return [Delta(call=call), *self._argue()]

    def _argue(self) -> list[Delta]:
        """The arguments so far, without what may be the end of the call."""
        assert self.format is not None
        tail = self.format.tail.search(self._held)
        at = tail.start() if tail else len(self._held)
        arguments, self._held = self._held[:at], self._held[at:]
        return [Delta(call=CallDelta(self.calls - 1, arguments=arguments))] if arguments else []

    def _end_call(self) -> list[Delta]:
        assert self.format is not None
        rest = "" if self._held.rstrip() == self.format.closing else self._held
        self._state, self._held = self._after, ""
        return [Delta(call=CallDelta(self.calls - 1, arguments=rest))] if rest else []


def _call_id() -> str:
    return f"call_{secrets.token_hex(12)}"


def parser_for(
    tokenizer: Tokenizer,
    tools: Sequence[Mapping[str, Any]] | None = None,
    prompt: Sequence[int] = (),
    name: str | None = None,
    new_id: Callable[[], str] = _call_id,
) -> Parser:
    """The parser for an answer of a model.

    Args:
        tokenizer: the model's; its vocabulary and chat templates say how calls are written.
        tools: what the model may call. Without any, calls are text.
        prompt: the tokens that the answer follows.
        name: a format of `FORMATS`, or `plain`, if it shall not be guessed.
        new_id: gives ids to calls, where the model does not.

    Raises:
        DeepZigError: no format is called so, or the vocabulary lacks its tokens.
    """
    format = format_for(tokenizer, name)
    return Parser(tokenizer, format if tools else None, prompt, new_id)
