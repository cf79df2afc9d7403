"""The rows of a call of several sequences, and the tokens that are drawn from it."""

from __future__ import annotations

from collections.abc import Sequence as List
from typing import Any

import numpy as np
import numpy.typing as npt

from deepzig.runtime.backend import Backend
from deepzig.runtime.sampling import SamplingOptions
from deepzig.runtime.tensors import Tensor

from .scheduler import Work
from .sequence import Sequence

Array = npt.NDArray[Any]
I32 = np.int32

GREEDY = SamplingOptions()
NO_KEY = np.zeros(2, I32)


class Rows:
    """The inputs for the rows of several sequences.

    Args:
        works: what to read, one entry a sequence.

    Attributes:
        inputs: of an entry point: `tokens`, `seq`, `pos`, `block_table` and `out_rows`.
        draws: of each row of logits that a token is drawn from: the sequence that draws it, and how many guesses
            precede it.
        drawn_from: which rows of the logits these are.
        spans: which rows of the call are of each of `works`.
        shown: of each of `works`, which rows of the logits its request wants to see.
    """

    def __init__(self, works: List[Work]) -> None:
        tokens: list[int] = []
        out_rows: list[int] = []
        self.draws: list[tuple[Sequence, int]] = []
        self.drawn_from: list[int] = []
        self.spans: list[range] = []
        self.shown: list[range] = []
        for work in works:
            span = range(len(tokens), len(tokens) + work.rows)
            reading = work.sequence.request.reading
            seen = span if reading and reading.logits else range(0)
            self.spans.append(span)
            self.shown.append(range(len(out_rows), len(out_rows) + len(seen)))
            tokens += work.sequence.tokens[work.begin : work.end]
            tokens += work.guesses
            out_rows += seen
            if work.draws:
                draws = [(work.sequence, guessed) for guessed in range(len(work.guesses) + 1)]
                last = span[-1] - len(work.guesses)
                wanted = [last + guessed for _, guessed in draws] + [last] * len(work.followers)
                self.drawn_from += range(len(out_rows), len(out_rows) + len(wanted))
                self.draws += draws + [(follower, 0) for follower in work.followers]
                out_rows += wanted
        counts = [work.rows for work in works]
        self.inputs: dict[str, Array] = {
            "tokens": np.array(tokens, I32),
            "seq": np.repeat(np.arange(len(works), dtype=I32), counts),
            "pos": np.concatenate([np.arange(w.begin, w.begin + w.rows, dtype=I32) for w in works]),
            "block_table": block_table([work.sequence.pages for work in works]),
            "out_rows": np.array(out_rows, I32),
        }


def block_table(pages: List[list[int]]) -> Array:
    """Pages of sequences, i32 [b, p]; what lies behind a shorter list is not read."""
    table = np.zeros((len(pages), max(map(len, pages))), I32)
    for row, mine in zip(table, pages, strict=True):
        row[: len(mine)] = mine
    return table


def draw(
    backend: Backend, logits: Tensor, options: List[SamplingOptions], keys: List[Array], positions: List[int]
) -> list[int]:  # fmt: skip
    """A token for each row of logits; NO_TOKEN where the largest logit is not finite.

    Args:
        backend: has the op.
        logits: f32 [r, vocab].
        options: of each row.
        keys: of each row's random numbers, i32 [2].
        positions: of the tokens that are drawn.
    """
    inputs: dict[str, Tensor] = {
        "logits": logits,
        "temperature": np.array([o.temperature for o in options], np.float32),
        "top_k": np.array([o.top_k for o in options], I32),
        "top_p": np.array([o.top_p for o in options], np.float32),
        "min_p": np.array([o.min_p for o in options], np.float32),
        "seed": np.array(keys, I32),
        "position": np.array(positions, I32),
    }
    tokens: list[int] = np.asarray(backend.call("sample", inputs)[0]).tolist()
    return tokens


def draw_likeliest(backend: Backend, logits: Tensor) -> list[int]:
    """The likeliest token of each row of logits; NO_TOKEN where the largest is not finite."""
    rows = len(logits)
    return draw(backend, logits, [GREEDY] * rows, [NO_KEY] * rows, [0] * rows)
