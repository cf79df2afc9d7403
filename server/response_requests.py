"""The body of `POST /v1/responses`, made what `Model.submit_chat` takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, Field, StrictBool, StrictInt, StrictStr

from .errors import ApiError
from .messages import ROLES, text_of
from .requests import JsonSchema, ResponseFormat, Sampling

LOGPROBS = "message.output_text.logprobs"


class TextFormat(JsonSchema):
    """What the text has to be; the same as `response_format` of chat, but flat."""

    type: Literal["text", "json_object", "json_schema"] = "text"


class TextOptions(BaseModel):
    """How the text shall be."""

    format: TextFormat = Field(default_factory=TextFormat)


class ResponseRequest(Sampling):
    """The body of `POST /v1/responses`. Everything that needs a store is refused."""

    REFUSED: ClassVar[Mapping[str, str]] = {
        **Sampling.REFUSED,
        "previous_response_id": "responses are not stored; send the whole conversation as input",
        "conversation": "conversations are not stored; send all of it as input",
        "background": "responses are not stored; use stream",
        "prompt": "prompts are not stored; send it as input",
    }

    input: StrictStr | list[dict[str, Any]] = Field(min_length=1)
    instructions: StrictStr | None = None
    max_output_tokens: StrictInt | None = None
    text: TextOptions = Field(default_factory=TextOptions)
    tools: list[dict[str, Any]] | None = None
    tool_choice: StrictStr | dict[str, Any] | None = None
    parallel_tool_calls: StrictBool | None = None
    top_logprobs: StrictInt | None = None
    include: list[StrictStr] | None = None
    metadata: dict[str, StrictStr] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    previous_response_id: Any = None
    conversation: Any = None
    background: Any = None
    prompt: Any = None

    def messages(self) -> list[dict[str, Any]]:
        """The conversation as chat messages: what the model thought, said and called in one turn is one message.

        Raises:
            ApiError: an item that a chat has no place for.
        """
        messages: list[dict[str, Any]] = []
        if self.instructions:
            messages.append({"role": "system", "content": self.instructions})
        if isinstance(self.input, str):
            return [*messages, {"role": "user", "content": self.input}]
        for number, item in enumerate(self.input):
            place, kind = f"input.{number}", item.get("type", "message")
            if kind not in ITEMS:
                raise ApiError(400, f"items of type {kind!r} are not known here", param=f"{place}.type")
            message = ITEMS[kind](item, place)
            if messages and message["role"] == messages[-1]["role"] == "assistant":
                _merge(messages[-1], message)
            else:
                messages.append(message)
        return messages

    def options(self) -> dict[str, Any]:
        """Arguments for `Model.submit_chat`.

        Raises:
            ApiError: fields that do not go together.
        """
        options = super().options()
        schema = self.text.format if self.text.format.type == "json_schema" else None
        structure = ResponseFormat(type=self.text.format.type, json_schema=schema).structure()
        if self.tool_choice not in (None, "none", "auto") and not self.tools:
            raise ApiError(400, "tool_choice is given without tools", param="tool_choice")
        logprobs = bool(self.top_logprobs) or LOGPROBS in (self.include or [])
        return {
            **options, "n": 1, "max_tokens": self.max_output_tokens, "structured_outputs": structure,
            "logprobs": logprobs, "top_logprobs": self.top_logprobs or 0,
            "tools": [_tool(tool, f"tools.{number}") for number, tool in enumerate(self.tools or [])] or None,
            "tool_choice": _choice(self.tool_choice) if self.tools else None,
            "parallel_tool_calls": self.parallel_tool_calls is not False,
            "chat_template_kwargs": self.chat_template_kwargs,
        }  # fmt: skip

    def told(self, model: str) -> dict[str, Any]:
        """What a response repeats of the request."""
        form = self.text.format.model_dump(by_alias=True, exclude_unset=True)
        return {
            "model": model, "error": None, "incomplete_details": None, "instructions": self.instructions,
            "max_output_tokens": self.max_output_tokens, "metadata": self.metadata or {},
            "parallel_tool_calls": self.parallel_tool_calls is not False, "previous_response_id": None,
            "store": False, "temperature": 1.0 if self.temperature is None else self.temperature,
            "text": {"format": {"type": "text", **form}}, "tool_choice": self.tool_choice or "auto",
            "tools": self.tools or [], "top_p": 1.0 if self.top_p is None else self.top_p,
            "top_logprobs": self.top_logprobs or 0, "truncation": "disabled",
        }  # fmt: skip


def _message(item: Mapping[str, Any], place: str) -> dict[str, Any]:
    role = _field(item, "role", place)
    return {"role": ROLES.get(role, role), "content": _text(item, "content", place)}


def _call(item: Mapping[str, Any], place: str) -> dict[str, Any]:
    function = {name: _field(item, name, place) for name in ("name", "arguments")}
    call = {"id": _field(item, "call_id", place), "type": "function", "function": function}
    return {"role": "assistant", "content": "", "tool_calls": [call]}


def _output(item: Mapping[str, Any], place: str) -> dict[str, Any]:
    return {
        "role": "tool", "tool_call_id": _field(item, "call_id", place), "content": _text(item, "output", place)
    }  # fmt: skip


def _reasoning(item: Mapping[str, Any], place: str) -> dict[str, Any]:
    parts = item.get("content") or []
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise ApiError(400, "content is no list of parts", param=f"{place}.content")
    texts = [text for part in parts if isinstance(text := part.get("text"), str)]
    return {"role": "assistant", "content": "", "reasoning_content": "\n".join(texts)}


ITEMS = {"message": _message, "function_call": _call, "function_call_output": _output, "reasoning": _reasoning}
"""Type of an item -> its chat message, or the part of one that it is."""


def _merge(message: dict[str, Any], more: Mapping[str, Any]) -> None:
    """Add another item of the same turn to a message."""
    for name, value in more.items():
        if name != "role":
            message[name] = message[name] + value if name in message else value


def _field(item: Mapping[str, Any], name: str, place: str) -> str:
    value = item.get(name)
    if not isinstance(value, str):
        raise ApiError(400, f"{name} is no text", param=f"{place}.{name}")
    return value


def _text(item: Mapping[str, Any], name: str, place: str) -> str:
    value = item.get(name)
    if isinstance(value, list) and all(isinstance(part, dict) for part in value):
        return text_of(value, f"{place}.{name}")
    return _field(item, name, place)


def _tool(tool: Mapping[str, Any], place: str) -> dict[str, Any]:
    """A function as chat has it."""
    if tool.get("type") != "function":
        what = f"tools of type {tool.get('type')!r} are not known here: give functions"
        raise ApiError(400, what, param=f"{place}.type")
    return {"type": "function", "function": {name: value for name, value in tool.items() if name != "type"}}


def _choice(choice: str | Mapping[str, Any] | None) -> Any:
    """What may be called, as chat has it."""
    if isinstance(choice, Mapping) and choice.get("type") == "function":
        return {"type": "function", "function": {"name": choice.get("name")}}
    return choice
