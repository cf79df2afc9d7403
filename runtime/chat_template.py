"""Chat templates, rendered as transformers renders them (transformers/utils/chat_template_utils.py).

A template is a stranger's program: it runs in Jinja's sandbox and sees plain data only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

import jinja2
import numpy as np
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from deepzig.errors import DeepZigError

REASONING = ("reasoning_content", "thinking", "reasoning")
"""Names under which clients pass the reasoning of a message; templates read the first, some of them the second."""

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
        text: str = _compile(source).render(messages=chat, **plain(variables))
    except jinja2.TemplateSyntaxError as error:
        what = f"the chat template is wrong: {error}"
        raise DeepZigError(what, where, "mend it and compile the model again") from None
    except Exception as error:  # the template's own code may raise anything
        raise DeepZigError(
            f"the chat template refuses the messages: {error}", where, "check roles and contents"
        ) from None
    return _cut(text, said, where) if resume else text


def plain(value: Any) -> Any:
    """A copy made of JSON's types; anything else becomes the name of its type, which has no methods to misuse."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)  # a subclass may have its own
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


@lru_cache(maxsize=16)
def _compile(source: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    environment.globals["namespace"] = _Namespace
    return environment.from_string(source)
