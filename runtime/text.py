"""Text from tokens, piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]

UNFINISHED = "�"
"""What a decoder gives for bytes that don't make a character yet."""


class Detokenizer:
    """Turns tokens into pieces of text that never split a character.

    Decodes a short window of tokens, since what a token adds may depend on those before it: the tokens of the last
    piece, whole characters, and what came since. Text that ends in an unfinished character is held back.
    """

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._tokens: list[int] = []
        self._known = 0
        self._shown = ""

    def push(self, token: int) -> str:
        """The text that `token` completes."""
        self._tokens.append(token)
        text = self._decode(self._tokens)
        if text.endswith(UNFINISHED):
            return ""
        piece = text[len(self._shown) :]
        new = self._decode(self._tokens[self._known :])
        if new:  # tokens without text say nothing of what a decoder does after them
            del self._tokens[: self._known]
            text = new
        self._known, self._shown = len(self._tokens), text
        return piece

    def flush(self) -> str:
        """What is held back, when no more tokens come."""
        text = self._decode(self._tokens)
        piece, self._shown = text[len(self._shown) :], text
        return piece


class StopFinder:
    """Finds stop texts in a stream of pieces, holding back what may become one.

    Attributes:
        held: what is held back.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self.held = ""

    def push(self, piece: str) -> tuple[str, bool]:
        """The text that may be shown, and whether a stop text was found after it."""
        self.held += piece
        found = [at for stop in self._stops if (at := self.held.find(stop)) >= 0]
        if found:
            text, self.held = self.held[: min(found)], ""
            return text, True
        keep = max((_overlap(self.held, stop) for stop in self._stops), default=0)
        cut = len(self.held) - keep
        text, self.held = self.held[:cut], self.held[cut:]
        return text, False

    def last(self, piece: str) -> tuple[str, bool]:
        """As `push`, for the last piece: nothing is held back."""
        text, found = self.push(piece)
        return text + self.release(), found

    def release(self) -> str:
        """What is held back, which no stop text will begin with."""
        held, self.held = self.held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that `stop` starts with."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
