"""The bodies of answers, for the document at `/openapi.json`. Answers are built as plain mappings, which is faster."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Body(BaseModel):
    """An object with these fields and no others."""

    model_config = ConfigDict(extra="forbid")


class ErrorDetails(Body):
    """What went wrong; `param` names the field that is to blame."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(Body):
    """The body of every answer that is an error."""

    error: ErrorDetails


class Health(Body):
    """Whether the server takes requests."""

    status: Literal["ok", "loading", "draining"]


class ModelCard(Body):
    """A model that is served."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int


class ModelList(Body):
    """All models that are served."""

    object: Literal["list"]
    data: list[ModelCard]


class CachedTokens(Body):
    """How much of a prompt was found read."""

    cached_tokens: int


class ReasoningTokens(Body):
    """How much of an answer is reasoning."""

    reasoning_tokens: int


class TokenUsage(Body):
    """Tokens that a request took."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens
    completion_tokens_details: ReasoningTokens


class TopLogprob(Body):
    """A token that was likely in a place."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprobs(TopLogprob):
    """A token of an answer, and what was likely in its place."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(Body):
    """Log-probabilities of the tokens of an answer."""

    content: list[TokenLogprobs]
    refusal: None


class CalledFunction(Body):
    """A function's name, and its arguments as JSON, unless the model erred."""

    name: str
    arguments: str


class CalledTool(Body):
    """A call of a tool."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class AnswerMessage(Body):
    """What the model says, thought before, and calls."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: str | None = None
    tool_calls: list[CalledTool] | None = None


class ChatChoice(Body):
    """One of the answers to messages."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"]


class Answer(Body):
    """What whole answers share."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    usage: TokenUsage


class ChatCompletion(Answer):
    """The answers to messages."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]


class TextLogprobLists(Body):
    """Log-probabilities of tokens, one entry a token; the first of a prompt has none."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class TextChoice(Body):
    """One of the continuations."""

    index: int
    text: str
    logprobs: TextLogprobLists | None
    finish_reason: Literal["stop", "length"]


class Completion(Answer):
    """Continuations of prompts."""

    object: Literal["text_completion"]
    choices: list[TextChoice]


class PromptUsage(Body):
    """Tokens of a request without an answer."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingVector(Body):
    """The embedding of one text: numbers, or their bytes (f32, little-endian) in base64."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingList(Body):
    """The embeddings of all texts."""

    object: Literal["list"]
    model: str
    data: list[EmbeddingVector]
    usage: PromptUsage


class TokenList(Body):
    """Token ids of a text."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class TokensText(Body):
    """The text of token ids."""

    prompt: str


class InputDetails(Body):
    """How much of a prompt was found read."""

    cached_tokens: int
    cache_write_tokens: int


class ResponseUsage(Body):
    """Tokens that a response took."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: ReasoningTokens
    total_tokens: int


class IncompleteDetails(Body):
    """Why a response is not complete."""

    reason: Literal["max_output_tokens"]


class ResponseObject(Body):
    """A response: items that the model made, and what was asked for."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["completed", "incomplete"]
    model: str
    output: list[dict[str, Any]]
    usage: ResponseUsage
    error: None
    incomplete_details: IncompleteDetails | None
    instructions: str | None
    metadata: dict[str, str]
    parallel_tool_calls: bool
    temperature: float
    top_p: float
    tools: list[dict[str, Any]]
    tool_choice: str | dict[str, Any]
    text: dict[str, Any]
    max_output_tokens: int | None
    top_logprobs: int
    truncation: Literal["disabled"]
    store: Literal[False]
    previous_response_id: None = Field(description="responses are not stored")


class Event(BaseModel):
    """A server-sent event: a part of the answer as JSON, or `[DONE]`."""

    data: str
    event: str = "message"


ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorBody, "description": "The request does not fit."},
    "5XX": {"model": ErrorBody, "description": "The server can't answer."},
}
"""How every path may fail."""

STREAMED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The answer; with `stream`, its parts as server-sent events.",
        "content": {"text/event-stream": {"itemSchema": Event.model_json_schema()}},
    },
}
"""A path that can stream."""
