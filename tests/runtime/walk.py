"""A model's stand-in: draws tokens at random among those that a guide allows, and in the end looks for the way out."""

from __future__ import annotations

import numpy as np

from deepzig.runtime.guide import Guide, allows
from deepzig.runtime.tokenizer import Tokenizer

OUT = ["}]", '"', ",", ":", "tfn0123456789", "[{"]
"""What a token may begin with that leads out of JSON, the best first."""

IN_STRING = {'"': 0, **dict.fromkeys("abcx@.}:", 1)}
"""Likewise of a string; patterns wait for these letters."""


class Walker:
    """Draws answers of one tokenizer.

    Args:
        tokenizer: its tokens must be texts each; others are drawn, but not on the way out.
        vocab_size: number of logits.
        eos: the end token.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos: int) -> None:
        self.tokenizer, self.vocab_size, self.eos = tokenizer, vocab_size, eos
        self.texts = [tokenizer.decode([t], skip_special=False) for t in range(vocab_size)]

    def walk(self, guide: Guide, rng: np.random.Generator, freely: int, most: int = 1500) -> list[int]:
        """The tokens of an answer, without the end token.

        Args:
            guide: a new one; it is left at the end of the answer.
            rng: draws.
            freely: so many tokens are drawn without a thought of the end.
            most: so many tokens must be enough.
        """
        tokens: list[int] = []
        while not guide.ended:
            mask = guide.masks()[0]
            allowed = [t for t in range(self.vocab_size) if allows(mask, t)]
            assert allowed, f"nothing may follow {self.tokenizer.decode(tokens)!r}"
            if self.eos in allowed and (len(tokens) >= freely or rng.random() < 0.1):
                guide.push(self.eos)
                assert guide.ended
                break
            allowed = [t for t in allowed if t != self.eos]
            token = int(rng.choice(allowed)) if len(tokens) < freely else self._way_out(allowed, tokens, rng)
            guide.push(token)
            tokens.append(token)
            assert len(tokens) < most, f"no end of {self.tokenizer.decode(tokens)!r}"
        return tokens

    def _way_out(self, allowed: list[int], tokens: list[int], rng: np.random.Generator) -> int:
        if _in_string(self.tokenizer.decode(tokens, skip_special=False)):
            ranks = {t: IN_STRING.get(self.texts[t], 2) for t in allowed}
        else:
            ranks = {t: self._rank(self.texts[t]) for t in allowed}
        best = min(ranks.values())
        return int(rng.choice([t for t in allowed if ranks[t] == best]))

    def _rank(self, text: str) -> int:
        if not text.strip():
            return len(OUT) + 1  # spaces lead nowhere
        return next((i for i, begins in enumerate(OUT) if text[0] in begins and len(text) == 1), len(OUT))


def _in_string(text: str) -> bool:
    inside = escaped = False
    for c in text:
        if escaped:
            escaped = False
        elif c == "\\":
            escaped = inside
        elif c == '"':
            inside = not inside
    return inside
