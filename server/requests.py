"""The bodies of requests, as OpenAI's API has them, with vLLM's extensions. Ranges are checked by `SamplingOptions`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr

from .errors import ApiError
from .messages import ChatMessage

Number = StrictInt | float


Prompts = StrictStr | list[StrictInt] | list[StrictStr] | list[list[StrictInt]]
"""A text or token ids, or several of them."""


def prompts_of(given: Prompts, field: str) -> list[str | list[int]]:
    """The prompts that a field has.

    Raises:
        ApiError: there is none.
    """
    if isinstance(given, str):
        return [given]
    if not given:
        raise ApiError(400, f"{field} is empty", param=field)
    if isinstance(given[0], int):
        return [[token for token in given if isinstance(token, int)]]
    return [one for one in given if not isinstance(one, int)]


class StreamOptions(BaseModel):
    """What a stream tells beside the answer."""

    include_usage: StrictBool = False


class Sampling(BaseModel):
    """What both kinds of requests have. Fields that are not known are ignored, as OpenAI does."""

    model_config = ConfigDict(extra="ignore", strict=True)

    PASSED: ClassVar[tuple[str, ...]] = (
        "n", "temperature", "top_p", "top_k", "min_p", "stop", "stop_token_ids", "seed", "ignore_eos", "min_tokens",
        "presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias", "priority", "cache_salt",
    )  # fmt: skip
    """Fields that the model takes under the same name."""

    REFUSED: ClassVar[Mapping[str, str]] = {
        "prompt_logprobs": "ask /v1/completions with echo and logprobs",
    }
    """Fields that would change the answer and that the server can't do -> what to do instead."""

    model: StrictStr
    stream: StrictBool = False
    stream_options: StreamOptions | None = None
    max_tokens: StrictInt | None = None
    n: StrictInt | None = None
    temperature: Number | None = None
    top_p: Number | None = None
    top_k: StrictInt | None = None
    min_p: Number | None = None
    stop: StrictStr | list[StrictStr] | None = None
    stop_token_ids: list[StrictInt] | None = None
    seed: StrictInt | None = None
    ignore_eos: StrictBool | None = None
    min_tokens: StrictInt | None = None
    presence_penalty: Number | None = None
    frequency_penalty: Number | None = None
    repetition_penalty: Number | None = None
    logit_bias: dict[str, Number] | None = None
    structured_outputs: dict[str, Any] | None = None
    priority: StrictInt = 0
    cache_salt: StrictStr | None = None
    prompt_logprobs: Any = None

    def options(self) -> dict[str, Any]:
        """Arguments for `Model.submit` and `Model.submit_chat`.

        Raises:
            ApiError: a field that the server can't do.
        """
        for name, instead in self.REFUSED.items():
            if getattr(self, name):
                raise ApiError(400, f"{name} is not supported: {instead}", param=name, code="unsupported_parameter")
        if self.stream_options is not None and not self.stream:
            raise ApiError(400, "stream_options is given without stream", param="stream_options")
        passed = {name: getattr(self, name) for name in self.PASSED}
        temperature = 1.0 if self.temperature is None else self.temperature  # OpenAI's default; the model's is 0
        return {**passed, "temperature": temperature, "structured_outputs": self.structured_outputs}

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with what it took."""
        return self.stream_options is not None and self.stream_options.include_usage


class JsonSchema(BaseModel):
    """A named schema; the answer is held to it whether `strict` is set or not."""

    name: StrictStr = "schema"
    schema_: dict[str, Any] = Field(default_factory=dict, alias="schema")


class ResponseFormat(BaseModel):
    """What the answer has to be."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    def structure(self) -> dict[str, Any] | None:
        """The same as the option `structured_outputs`.

        Raises:
            ApiError: a json_schema without a schema.
        """
        if self.type == "json_object":
            return {"json_object": True}
        if self.type == "text":
            return None
        if self.json_schema is None:
            raise ApiError(400, "response_format has no json_schema", param="response_format.json_schema")
        return {"json": self.json_schema.schema_}


class ChatRequest(Sampling):
    """The body of `POST /v1/chat/completions`."""

    REFUSED: ClassVar[Mapping[str, str]] = {
        **Sampling.REFUSED, "functions": "give tools", "function_call": "give tool_choice",
    }  # fmt: skip

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: StrictInt | None = None
    logprobs: StrictBool | None = None
    top_logprobs: StrictInt | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: StrictStr | dict[str, Any] | None = None
    parallel_tool_calls: StrictBool = True
    response_format: ResponseFormat | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    functions: Any = None
    function_call: Any = None

    def options(self) -> dict[str, Any]:
        """Arguments for `Model.submit_chat`.

        Raises:
            ApiError: fields that do not go together.
        """
        options = super().options()
        if self.tool_choice not in (None, "none") and not self.tools:
            raise ApiError(400, "tool_choice is given without tools", param="tool_choice")
        if self.response_format and (structure := self.response_format.structure()):
            if self.structured_outputs:
                raise ApiError(400, "response_format and structured_outputs are both given", param="response_format")
            options["structured_outputs"] = structure
        same = ("max_tokens", "max_completion_tokens", "logprobs", "top_logprobs", "tool_choice")
        return {
            **options, **{name: getattr(self, name) for name in same}, "tools": self.tools or None,
            "parallel_tool_calls": self.parallel_tool_calls, "chat_template_kwargs": self.chat_template_kwargs,
        }  # fmt: skip


class CompletionRequest(Sampling):
    """The body of `POST /v1/completions`."""

    REFUSED: ClassVar[Mapping[str, str]] = {**Sampling.REFUSED, "suffix": "models can only go on with a text"}

    prompt: Prompts
    logprobs: StrictInt | None = None
    best_of: StrictInt | None = None
    echo: StrictBool = False
    suffix: Any = None

    def options(self) -> dict[str, Any]:
        """Arguments for `Model.submit`.

        Raises:
            ApiError: a field that the server can't do.
        """
        options = super().options()
        if self.best_of not in (None, self.n or 1):
            what = "best_of is not supported: ask for n answers with logprobs, and choose"
            raise ApiError(400, what, param="best_of", code="unsupported_parameter")
        most = 16 if self.max_tokens is None else self.max_tokens  # OpenAI's default
        asked = self.logprobs is not None
        return {**options, "max_tokens": most, "logprobs": asked, "top_logprobs": self.logprobs or 0}

    def prompts(self) -> list[str | list[int]]:
        """The prompts, one or several.

        Raises:
            ApiError: there is none.
        """
        return prompts_of(self.prompt, "prompt")
