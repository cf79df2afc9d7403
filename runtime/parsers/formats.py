"""How models write calls of tools, as their chat templates do."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from deepzig.errors import DeepZigError
from deepzig.runtime.tokenizer import Tokenizer


class Mark(Enum):
    """What a token may mark."""

    THINK = "the start of reasoning"
    END_THINK = "its end"
    SECTION = "the start of all calls"
    END_SECTION = "their end"
    CALL = "the start of a call"
    SEPARATOR = "what comes between a call's name and its arguments"
    END_CALL = "the end of a call"


THINK = {Mark.THINK: "<think>", Mark.END_THINK: "</think>"}
"""One for all models that reason."""

TURNS = ("<｜Assistant｜>", "<|im_middle|>")
"""Tokens after which an answer starts."""


@dataclass(frozen=True)
class Format:
    """A way to write calls.

    Attributes:
        marks: the tokens.
        sign: a part of the chat templates that write calls so, and of none that is further down in the table.
        before: what stands before the separator; `{name}` for the function's.
        after: what stands after it, up to the arguments.
        closing: what stands between the arguments and the end of the call.
        between: what may stand between calls.
        numbered: whether a number follows `before`; together they are the id of the call.
        head: matches what stands before the arguments of a call as models write it, the separator included; its groups
            are `name`, and `id` where the model gives it one.
        tail: finds, at the end of the arguments so far, what may become what follows them.
    """

    marks: Mapping[Mark, str]
    sign: str
    before: str
    after: str
    closing: str
    between: str
    numbered: bool
    head: re.Pattern[str]
    tail: re.Pattern[str]


DEEPSEEK = {
    Mark.SECTION: "<｜tool▁calls▁begin｜>",
    Mark.END_SECTION: "<｜tool▁calls▁end｜>",
    Mark.CALL: "<｜tool▁call▁begin｜>",
    Mark.SEPARATOR: "<｜tool▁sep｜>",
    Mark.END_CALL: "<｜tool▁call▁end｜>",
}
KIMI = {
    Mark.SECTION: "<|tool_calls_section_begin|>",
    Mark.END_SECTION: "<|tool_calls_section_end|>",
    Mark.CALL: "<|tool_call_begin|>",
    Mark.SEPARATOR: "<|tool_call_argument_begin|>",
    Mark.END_CALL: "<|tool_call_end|>",
}
NEVER = re.compile(r"(?!)")

FORMATS: dict[str, Format] = {
    # DeepSeek-V3, V3-0324, R1 and R1-0528
    "deepseek-v3": Format(
        marks=DEEPSEEK,
        sign="```json",
        before="function",
        after="{name}\n```json\n",
        closing="\n```",
        between="\n",
        numbered=False,
        head=re.compile(r"\s*(?:function)?<｜tool▁sep｜>\s*(?P<name>[^\s`]+)\s*\n```json\n"),
        tail=re.compile(r"\n(?:`{0,2}|```\s*)\Z"),
    ),
    # DeepSeek-V3.1
    "deepseek-v3.1": Format(
        marks=DEEPSEEK,
        sign="<｜tool▁sep｜>",
        before="{name}",
        after="",
        closing="",
        between="",
        numbered=False,
        head=re.compile(r"\s*(?P<name>[^\s`]+)\s*<｜tool▁sep｜>"),
        tail=NEVER,
    ),
    # Kimi-K2 and Kimi-K2-Thinking
    "kimi-k2": Format(
        marks=KIMI,
        sign="<|tool_call_argument_begin|>",
        before="functions.{name}:",
        after="",
        closing="",
        between="",
        numbered=True,
        head=re.compile(r"\s*(?P<id>(?:functions\.)?(?P<name>[^\s:]+):\d+)\s*<\|tool_call_argument_begin\|>"),
        tail=NEVER,
    ),
}
"""Name -> format. Of those whose tokens a vocabulary has, the first is taken whose sign its templates have;
without a sign the first."""

PLAIN = "plain"
"""The name that stands for none."""


def known_marks(marks: Mapping[Mark, str], tokenizer: Tokenizer) -> dict[Mark, int]:
    """The ids of tokens; none of them unless the vocabulary has all."""
    found = {mark: tokenizer.token_id(text) for mark, text in marks.items()}
    ids = {mark: token for mark, token in found.items() if token is not None}
    return ids if len(ids) == len(marks) else {}


def format_for(tokenizer: Tokenizer, name: str | None = None) -> Format | None:
    """The format of a model's calls, by its vocabulary and templates, or by name; None if it has none or for `plain`.

    Raises:
        DeepZigError: no format is called so, or the vocabulary lacks its tokens.
    """
    names = (*FORMATS, PLAIN)
    if name is not None and name not in names:
        raise DeepZigError(f"no parser is called {name!r}", "option parser", f"choose from {', '.join(names)}")
    if name == PLAIN:
        return None
    fitting = [n for n, f in FORMATS.items() if name in (None, n) and known_marks(f.marks, tokenizer)]
    if name is not None and not fitting:
        hint = "leave the option out: the format is found by the model's tokens"
        raise DeepZigError(f"the vocabulary lacks the tokens of {name}", "option parser", hint)
    if not fitting:
        return None
    templates = tokenizer.templates.values()
    signed = [n for n in fitting if any(FORMATS[n].sign in template for template in templates)]
    return FORMATS[(signed or fitting)[0]]


def is_thinking(prompt: Sequence[int], think: Mapping[Mark, int], tokenizer: Tokenizer) -> bool | None:
    """Whether a prompt ends within reasoning; None where it says nothing of it, and the answer may start it."""
    turns = {tokenizer.token_id(turn) for turn in TURNS}
    for token in reversed(prompt):
        if token in think.values():
            return token == think[Mark.THINK]
        if token in turns:
            break
    return None
