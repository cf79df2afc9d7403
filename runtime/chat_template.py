"""Chat templates, rendered as transformers renders them (transformers/utils/chat_template_utils.py).

A template is a stranger's program: it runs in Jinja's sandbox and sees plain data only. Its text, its products and
powers, and the time in which it writes, calls and loops are limited. It still runs in our process: one that doubles
a text often enough, or spends its time within one filter, is not stopped.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from datetime import datetime
from functools import lru_cache
from typing import Any

import jinja2
import numpy as np
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from deepzig.errors import DeepZigError

REASONING = ("reasoning_content", "thinking", "reasoning")
"""Names under which clients pass the reasoning of a message; templates read the first, some of them the second."""

MAX_TEXT = 1 << 26
"""Characters that a template may write; a context of a million tokens has some four million."""

MAX_SECONDS = 20
MAX_BITS = 1 << 16
WIDE = re.compile(r"%(?:\([^)]*\))?[-#0 +]*(?:[0-9]*\.)?(?:[0-9]{6}|\*)")
"""A format that fills up to a hundred thousand characters or more, or to a width that it is given."""

_DEADLINE: ContextVar[float] = ContextVar("_DEADLINE", default=math.inf)
"""When the template that is being rendered has to be done."""

END = "<deepzig-continue-here> "
"""Marks the end of the message to continue; a template that trims its text takes the last space away."""


def render(source: str, messages: Sequence[Mapping[str, Any]], where: str, **variables: Any) -> str:
    """The text of a conversation.

    Args:
        source: the template.
        messages: with at least `role` and what the template reads beside it; keys without a value are left out.
        where: where the template comes from, for errors.
        variables: what else the template sees. `continue_final_message=True` is not passed on: with it the text ends
            where the last message does, for the model to go on.

    Raises:
        DeepZigError: the template is wrong, or refuses the messages.
    """
    resume = variables.pop("continue_final_message", False)
    if resume and variables.get("add_generation_prompt"):
        raise DeepZigError(
            "a message can't be continued and followed by a new one",
            "option chat_template_kwargs",
            "give add_generation_prompt=False with continue_final_message=True",
        )
    chat = [_with_reasoning({k: plain(v) for k, v in m.items() if v is not None}) for m in messages]
    said = _mark_end(chat) if resume else ""
    if resume and "content" not in source:
        raise DeepZigError("the chat template reads no content", where, "don't ask it to continue a message")
    try:
        text = _limited(_compile(source).generate(messages=chat, **plain(variables)))
    except jinja2.TemplateSyntaxError as error:
        what = f"the chat template is wrong: {error}"
        raise DeepZigError(what, where, "mend it and compile the model again") from None
    except _StoppedError as error:
        what = f"the chat template is stopped: {error}"
        raise DeepZigError(what, where, "choose another template, or mend it and compile the model again") from None
    except Exception as error:  # the template's own code may raise anything
        raise DeepZigError(
            f"the chat template refuses the messages: {error}", where, "check roles and contents"
        ) from None
    return _cut(text, said, where) if resume else text


class _StoppedError(Exception):
    """The template takes too much."""


def _limited(pieces: Iterator[str]) -> str:
    """The pieces joined, as long as they are of a size and come in time."""
    size, written, token = 0, list[str](), _DEADLINE.set(time.monotonic() + MAX_SECONDS)
    try:
        for piece in pieces:
            _check_time()
            size += len(piece)
            if size > MAX_TEXT:
                raise _StoppedError(f"it writes more than {MAX_TEXT} characters")
            written.append(piece)
    finally:
        _DEADLINE.reset(token)
    return "".join(written)


def _check_time() -> None:
    if time.monotonic() > _DEADLINE.get():
        raise _StoppedError(f"it takes more than {MAX_SECONDS} seconds")


def _timed(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        _check_time()
        yield value


def plain(value: Any) -> Any:
    """A copy made of JSON's types; anything else becomes the name of its type, which has no methods to misuse."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    for kind in (int, float):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, Mapping):
        return {plain(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(plain, value)) if type(value) in (list, tuple) else [*map(plain, value)]
    return f"<{type(value).__name__}>"


def _with_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    reasoning = next((message[name] for name in REASONING if message.get(name) is not None), None)
    return message if reasoning is None else {"thinking": reasoning, **message, "reasoning_content": reasoning}


def _mark_end(chat: list[dict[str, Any]]) -> str:
    """Mark the end of the last message, and return its text."""
    content = chat[-1].get("content") if chat else None
    if isinstance(content, str):
        chat[-1]["content"] = content + END
        return content
    blocks = [b for b in content if isinstance(b, dict) and "text" in b] if isinstance(content, list) else []
    if not blocks:
        raise DeepZigError("the last message has no text to continue", "messages", "give it a content")
    text = str(blocks[-1]["text"])
    blocks[-1]["text"] = text + END
    return text


def _cut(text: str, said: str, where: str) -> str:
    at = text.rfind(END.strip())
    if at < 0 or said.strip() not in text:
        raise DeepZigError("the chat template does not show all of the last message", where, "continue another message")
    return text[:at] if text.startswith(END, at) else text[:at].rstrip()


class _Generation(Extension):
    """`{% generation %}` marks what the model said, for training; here it is only its content."""

    tags = {"generation"}  # noqa: RUF012 - jinja declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        """The block as a call that gives its body."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Macro) -> str:
        text: str = caller()
        return text


class _Namespace(Namespace):
    """Jinja's `namespace`, without the names that lead to Python's insides."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        values = dict(*args[1:], **kwargs)
        any(map(_refuse_private, values))
        Namespace.__init__(args[0], values)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        super().__setitem__(name, value)


def _refuse_private(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace can't hold {name!r}")


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """JSON as it is; Jinja's own filter escapes it for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox, with limits to what a template can take."""

    intercepted_binops = frozenset(("*", "**", "%"))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Refuse products, powers and formats that need a lot of memory."""
        _check_time()
        numbers = isinstance(left, int) and isinstance(right, int)
        if operator == "**":
            large = not isinstance(left, float) and right * left.bit_length() > MAX_BITS
        elif operator == "*" and not numbers:
            large = any(
                isinstance(a, str | bytes | list | tuple) and isinstance(b, int) and len(a) * b > MAX_TEXT
                for a, b in ((left, right), (right, left))
            )
        else:
            large = isinstance(left, str) and operator == "%" and WIDE.search(left) is not None
        if large:
            raise _StoppedError(f"the result of {operator} is too large")
        return super().call_binop(context, operator, left, right)

    def call(self, context: Context, function: Any, /, *arguments: Any, **named: Any) -> Any:
        """Call a function, in time."""
        _check_time()
        return super().call(context, function, *arguments, **named)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for loop in tree.find_all(nodes.For):
            loop.iter = nodes.Filter(loop.iter, "_timed", [], [], None, None)
        return tree


@lru_cache(maxsize=16)
def _compile(source: str) -> jinja2.Template:
    environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    environment.filters["_timed"] = _timed
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    environment.globals["namespace"] = _Namespace
    return environment.from_string(source)
