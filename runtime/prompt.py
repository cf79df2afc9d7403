"""What a prompt may be, and its tokens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

from deepzig.errors import DeepZigError

from .tokenizer import Tokenizer

Prompt = str | Sequence[Mapping[str, Any]] | Sequence[int]
"""A text, chat messages, or token ids."""

CHOICES = "give a text, a list of chat messages or a list of token ids"
RESERVED = frozenset({"messages", "tools", "template"})


@dataclass(frozen=True)
class ChatOptions:
    """How chat messages become a text; named as in vLLM.

    Attributes:
        tools: JSON schemas of the functions that the model may call.
        chat_template: the name of one of the model's templates, or a template.
        chat_template_kwargs: what else the template understands, such as `enable_thinking`; with
            `add_generation_prompt=False` and `continue_final_message=True` the model goes on with the last message.
    """

    tools: Sequence[Mapping[str, Any]] | None = None
    chat_template: str | None = None
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        tools, variables = self.tools, self.chat_template_kwargs
        if tools is not None and not (isinstance(tools, list | tuple) and all(isinstance(t, Mapping) for t in tools)):
            raise DeepZigError("tools is no list of objects", "option tools", "give a JSON schema for each function")
        if not isinstance(variables, Mapping) or not all(isinstance(k, str) for k in variables):
            raise DeepZigError(
                "chat_template_kwargs is no object", "option chat_template_kwargs", "give names with values"
            )
        if taken := sorted(RESERVED & variables.keys()):
            raise DeepZigError(
                f"chat_template_kwargs has {taken[0]}", "option chat_template_kwargs", "give it as an option of its own"
            )


def prompt_tokens(prompt: Prompt, tokenizer: Tokenizer, chat: ChatOptions) -> list[int]:
    """Token ids of a prompt.

    Raises:
        DeepZigError: it is none of the three, there is no tokenizer for it, or chat options without messages.
    """
    if isinstance(prompt, bytes | bytearray | Mapping) or not isinstance(prompt, Iterable):
        raise DeepZigError(f"a prompt can't be of type {type(prompt).__name__}", "prompt", CHOICES)
    items: list[Any] = [] if isinstance(prompt, str) else list(prompt)
    if items and all(isinstance(item, Mapping) for item in items):
        return tokenizer.encode_chat(items, chat.tools, chat.chat_template, **chat.chat_template_kwargs)
    if chat != ChatOptions():
        raise DeepZigError("chat options are given without messages", "prompt", "give a list of chat messages")
    return tokenizer.encode(prompt) if isinstance(prompt, str) else token_ids(items)


def token_ids(values: Iterable[Any]) -> list[int]:
    """The values as ints.

    Raises:
        DeepZigError: one is no whole number.
    """
    ids = list(values)
    for value in ids:
        if not isinstance(value, Integral) or isinstance(value, bool):
            raise DeepZigError(f"the prompt has {value!r}, which is no token id", "prompt", CHOICES)
    return list(map(int, ids))
