"""Requests that nobody means: valid ones of which something was changed at random. A seed gives the same request."""

from __future__ import annotations

import json
from copy import deepcopy
from random import Random
from typing import Any

from .conftest import KEY, NAME

MESSAGES: list[Any] = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "What is 12 plus 30?"},
    {"role": "assistant", "content": "42"},
    {"role": "user", "content": "Why?", "name": "a"},
]
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
TOOL = {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": SCHEMA}}
SAMPLING = {
    "max_tokens": 3, "n": 2, "temperature": 0.7, "top_p": 0.9, "top_k": 5, "min_p": 0.01, "seed": 3,
    "stop": ["x", "yz"], "presence_penalty": 0.5, "frequency_penalty": 0.5, "repetition_penalty": 1.1,
    "logit_bias": {"5": 1}, "stop_token_ids": [7], "ignore_eos": True, "priority": 1, "cache_salt": "a",
}  # fmt: skip
VALID: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "model": NAME, "messages": MESSAGES, **SAMPLING, "logprobs": True, "top_logprobs": 2, "tools": [TOOL],
        "tool_choice": "none", "parallel_tool_calls": True, "chat_template_kwargs": {"enable_thinking": False},
        "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}},
    },
    "/v1/completions": {
        "model": NAME, "prompt": ["Once upon a time", "a"], **SAMPLING, "logprobs": 1,
        "structured_outputs": {"regex": "[a-z ]{1,5}"}, "echo": True,
    },
    "/v1/responses": {
        "model": NAME, "input": [{"role": "user", "content": [{"type": "input_text", "text": "Spell lamp."}]}],
        "instructions": "Be short.", "max_output_tokens": 16, "temperature": 0.5, "top_p": 0.9, "store": False,
        "metadata": {"a": "b"}, "text": {"format": {"type": "text"}}, "truncation": "disabled",
    },
    "/v1/embeddings": {"model": NAME, "input": ["a", "lamp"], "encoding_format": "base64"},
    "/tokenize": {"model": NAME, "messages": MESSAGES, "add_generation_prompt": True, "return_token_strs": True},
    "/detokenize": {"model": NAME, "tokens": [5, 6, 7]},
}  # fmt: skip
"""Path -> a body with everything in it."""

OTHER_PATHS = ("/health", "/metrics", "/v1/models", f"/v1/models/{NAME}", "/", "/v1", "/%00", "/v1/models/%ff", "/docs")
METHODS = ("GET", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "POST")
STRANGE: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 10**40, 1e308, -1e-308, 0.5, "", " ", "\x00", "\n", "é",
    "💥" * 40, "\ud800", "a" * 5000, "{{ 7 * 7 }}", "<｜end▁of▁sentence｜>", [], {}, [[]], [None], {"": None},
    {"a": {"b": []}}, list(range(300)), float("nan"), float("inf"), NAME, "function", "required", "json_object",
    "^(a+)+$",
)  # fmt: skip


def changed(value: Any, draw: Random) -> Any:
    """A value with one change, somewhere in it."""
    if isinstance(value, dict) and value and draw.random() < 0.85:
        key = draw.choice([*value])
        kind = draw.random()
        if kind < 0.15:
            return {name: one for name, one in value.items() if name != key}
        if kind < 0.25:
            return {**value, str(draw.choice(STRANGE))[:50]: deepcopy(draw.choice(STRANGE))}
        return {**value, key: changed(value[key], draw)}
    if isinstance(value, list) and value and draw.random() < 0.7:
        at = draw.randrange(len(value))
        kind = draw.random()
        if kind < 0.2:
            return value[:at] + value[at + 1 :]
        if kind < 0.3:
            return value * draw.randint(2, 20)
        return [*value[:at], changed(value[at], draw), *value[at + 1 :]]
    if draw.random() < 0.1:
        for _ in range(draw.choice([3, 90, 200, 2000])):
            value = [value] if draw.random() < 0.5 else {"a": value}
        return value
    return deepcopy(draw.choice(STRANGE))


def dumped(value: Any) -> bytes:
    """JSON, however deep."""
    try:
        return json.dumps(value).encode()
    except RecursionError:
        return b"[" * 5000


def scrambled(data: bytes, draw: Random) -> bytes:
    """Bytes, some of which are changed, or missing, or new."""
    content = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(content) + 1)
        kind = draw.random()
        if kind < 0.3:
            content[at:at] = draw.randbytes(draw.randint(1, 8))
        elif kind < 0.6:
            del content[at : at + draw.randint(1, 30)]
        elif kind < 0.9 and at < len(content):
            content[at] = draw.randrange(256)
        else:
            del content[at:]
    return bytes(content)


def request(seed: int) -> tuple[bytes, bool]:
    """A request as it is sent, and whether it is clean HTTP."""
    draw = Random(seed)
    path = draw.choice([*VALID] * 10 + [*OTHER_PATHS])
    method = "POST" if path in VALID and draw.random() < 0.95 else draw.choice(METHODS)
    body = b""
    if path in VALID:
        streams = {"stream": True, "stream_options": {"include_usage": True}} if draw.random() < 0.3 else {}
        value: Any = {**VALID[path], **streams}
        for _ in range(draw.choice([0, 0, 1, 1, 1, 3])):
            value = changed(value, draw)
        body = dumped(value)
        if draw.random() < 0.15:
            body = scrambled(body, draw)
    headers = {
        "Host": "a", "Authorization": f"Bearer {KEY}", "Content-Type": "application/json",
        "Content-Length": str(len(body)), "Connection": "close",
    }  # fmt: skip
    if draw.random() < 0.1:
        name = draw.choice([*headers][:3])
        headers[name] = draw.choice(["", "Bearer", "x" * 3000, "text/plain", "application/json; charset=utf-16", "é"])
    if draw.random() < 0.05:
        headers[draw.choice(["x-request-id", "traceparent", "x-forwarded-for", "expect"])] = "é\t" * 60
    head = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    data = head.encode() + b"\r\n" + body
    if draw.random() < 0.1:
        return scrambled(data, draw), False
    return data, True
