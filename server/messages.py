"""Chat messages as clients send them, made what chat templates read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, StrictStr

from .errors import ApiError

ROLES = {"developer": "system"}
"""OpenAI's newer name of a role -> the one that templates know."""

TEXTS = frozenset({"text", "input_text", "output_text", "refusal"})
"""The types of parts that are text, in OpenAI's two APIs."""


class ChatMessage(BaseModel):
    """One message; fields that are not listed are passed on to the model's chat template."""

    model_config = ConfigDict(extra="allow", strict=True)

    role: StrictStr = Field(min_length=1)
    content: StrictStr | list[dict[str, Any]] | None = None
    tool_calls: list[dict[str, Any]] | None = None

    def as_dict(self, place: str) -> dict[str, Any]:
        """The message for a template: lists of parts become text, and a role has the name that templates know.

        Args:
            place: of the message in the body, for errors.

        Raises:
            ApiError: a part is no text.
        """
        given = self.model_dump(exclude_unset=True)
        if isinstance(self.content, list):
            given["content"] = text_of(self.content, f"{place}.content")
        elif self.content is None and self.role == "assistant":
            given["content"] = ""  # templates put what is called behind it
        return {**given, "role": ROLES.get(self.role, self.role)}


def conversation(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """The messages of a body, for a template.

    Raises:
        ApiError: a message has something that is no text.
    """
    return [message.as_dict(f"messages.{number}") for number, message in enumerate(messages)]


def text_of(parts: Sequence[Mapping[str, Any]], place: str) -> str:
    """The text of a list of parts, a line break between two, as vLLM and llama.cpp have it.

    Args:
        parts: of a content.
        place: of the list in the body, for errors.

    Raises:
        ApiError: a part is no text.
    """
    texts = []
    for number, part in enumerate(parts):
        kind = part.get("type")
        text = part.get("refusal" if kind == "refusal" else "text")
        if kind not in TEXTS or not isinstance(text, str):
            what = f"the part of a content is no text, but of type {kind!r}: this model reads text only"
            raise ApiError(400, what, param=f"{place}.{number}")
        texts.append(text)
    return "\n".join(texts)
