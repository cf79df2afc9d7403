"""JSON as the server reads it."""

from __future__ import annotations

import json
import random

import pytest

from deepzig.server.bodies import DEEPEST, parse


def nested(levels: int, seed: int) -> bytes:
    """Lists and objects in each other, beside what is not nested."""
    draw, text = random.Random(seed), "1"
    for _ in range(levels):
        text = draw.choice(['[%s]', '[[], %s, 2]', '{"a": %s}', '{"b": {}, "a": %s, "c": ["x"]}']) % text
    return text.encode()


@pytest.mark.parametrize("seed", range(5))
def test_depth(seed: int) -> None:
    assert parse(nested(DEEPEST - 1, seed)) == json.loads(nested(DEEPEST - 1, seed))
    with pytest.raises(json.JSONDecodeError, match="it is nested deeper than 100 levels"):
        parse(nested(DEEPEST + 1, seed))


@pytest.mark.parametrize(
    "body",
    [
        b"NaN", b"[Infinity]", b"-Infinity", b'"\xff"', b'"\\ud800"', b'"\\udc00\\ud800"', b"", b"[" * 100_000,
        b"{} {}", b"\xef\xbb\xbf{}",
    ],
)  # fmt: skip
def test_what_is_no_json(body: bytes) -> None:
    with pytest.raises(json.JSONDecodeError):
        parse(body)


def test_what_is() -> None:
    for value in ({"a": [1, 2.5, None, True, "\U0001f4a5\x00"], "": {}}, 7, "x", [], 2**64 - 1, -(2**63)):
        assert parse(json.dumps(value).encode()) == value
