"""text.js against Python's: the same pieces, wherever tokens and texts are cut."""

from __future__ import annotations

import random
from typing import Any

import pytest

from deepzig.runtime.text import Detokenizer, StopFinder

from ..runtime import fake
from .javascript import run

LETTERS = "ab漢👍"


def cut(data: Any, rng: random.Random, most: int) -> list[Any]:
    """In pieces of random sizes, empty ones among them."""
    pieces, at = [], 0
    while at < len(data):
        size = rng.randint(0, most)
        pieces.append(data[at : at + size])
        at += size
    return pieces


@pytest.fixture(scope="module")
def streams() -> list[list[list[int]]]:
    """Texts as tokens of some bytes each; broken ones too."""
    rng = random.Random(1)
    texts = [text.encode() for text in fake.CORPUS for _ in range(10)]
    texts += ["".join(rng.choices(LETTERS, k=30)).encode() for _ in range(40)]
    texts += [bytes(rng.choices(range(256), k=40)) for _ in range(20)]
    return [[list(token) for token in cut(text, rng, rng.randint(1, 5))] for text in texts]


def decoded(stream: list[list[int]]) -> list[str]:
    def decode(tokens: Any) -> str:
        return bytes(byte for token in tokens for byte in stream[token]).decode("utf-8", "replace")

    texts = Detokenizer(decode)
    return [*(texts.push(token) for token in range(len(stream))), texts.flush()]


def test_pieces_are_those_of_python(node: str, streams: list[list[list[int]]]) -> None:
    told = run(node, """
        return given.map((stream) => {
          const decode = (tokens) => new TextDecoder("utf-8", { ignoreBOM: true }).decode(
            Uint8Array.from(tokens.flatMap((token) => stream[token])));
          const texts = new Detokenizer(decode);
          return [...stream.keys()].map((token) => texts.push(token)).concat(texts.flush());
        });
    """, streams, text="Detokenizer")  # fmt: skip
    assert told == [decoded(stream) for stream in streams]
    for stream, pieces in zip(streams[:100], told, strict=False):
        whole = bytes(byte for token in stream for byte in token).decode()
        assert "".join(pieces) == whole and ("\ufffd" in whole or not any("\ufffd" in piece for piece in pieces))


def stopped(pieces: list[str], stops: list[str]) -> list[Any]:
    finder, told = StopFinder(stops), list[Any]()
    for i, piece in enumerate(pieces):
        text, found = finder.push(piece) if i < len(pieces) - 1 else finder.last(piece)
        told.append([text, found])
    return told


def test_stops_are_those_of_python(node: str) -> None:
    rng = random.Random(2)
    cases = []
    for _ in range(500):
        text = "".join(rng.choices(LETTERS, k=rng.randint(0, 30)))
        stops = ["".join(rng.choices(LETTERS, k=rng.randint(1, 5))) for _ in range(rng.randint(0, 3))]
        cases.append([[*cut(text, rng, 4), ""], stops])
    told = run(node, """
        return given.map(([pieces, stops]) => {
          const finder = new StopFinder(stops);
          return pieces.map((piece, i) => {
            const { text, found } = i < pieces.length - 1 ? finder.push(piece) : finder.last(piece);
            return [text, found];
          });
        });
    """, cases, text="StopFinder")  # fmt: skip
    assert told == [stopped(*case) for case in cases]
    assert any(found for one in told for _, found in one)
