"""Guesses of the layer for multi-token prediction, for several sequences at once (DeepSeek-V3 report, section 2.2).

The layer reads each row of a call again, with the hidden state that the model made of it and the token that follows,
and keeps a cache of its own in the same pages. Guesses never change an answer: tokens are drawn as ever, and the first
that differs from its guess ends the use of the rows behind it, which the next call writes over.
"""

from __future__ import annotations

from collections.abc import Sequence as List

import numpy as np

from deepzig.runtime.backend import Backend
from deepzig.runtime.tensors import Tensor
from deepzig.sampling import NO_TOKEN

from .batch import Array, Rows, block_table, draw_likeliest
from .scheduler import Work
from .sequence import Sequence

DRAFT = "draft"


def draft(backend: Backend, works: List[Work], rows: Rows, hidden: Tensor, wanted: dict[Sequence, int]) -> None:
    """Let the layer read the rows of a call, and guess.

    Args:
        backend: has the layer.
        works: of the call.
        rows: its inputs.
        hidden: states that the call made, f32 [n, hidden].
        wanted: sequence -> how many tokens it wants guessed. For these `guesses` is set.
    """
    nexts: list[int] = []
    out_rows: list[int] = []
    guessing: list[Sequence] = []
    for work in works:
        sequence = work.sequence
        known = sequence.tokens[work.begin + 1 : work.begin + 1 + work.rows]
        if wanted.get(sequence):
            guessing.append(sequence)
            out_rows.append(len(nexts) + len(known) - 1)
        # behind a wrong guess, and behind an answer's end, anything will do
        nexts += known + [0] * (work.rows - len(known))
    first = {**rows.inputs, "tokens": np.array(nexts, np.int32), "out_rows": np.array(out_rows, np.int32)}
    logits, states = backend.call(DRAFT, {**first, "hidden": hidden})
    while guessing:
        drawn = draw_likeliest(backend, logits)
        for sequence, token in zip(guessing, drawn, strict=True):
            if token != NO_TOKEN:
                sequence.guesses.append(token)
        going = [s for s, token in zip(guessing, drawn, strict=True) if token != NO_TOKEN and _more(s, wanted)]
        if not going:
            return
        if len(going) < len(guessing):
            kept = [guessing.index(s) for s in going]
            states = np.asarray(states)[kept]
        guessing = going
        logits, states = backend.call(DRAFT, {**_behind(guessing), "hidden": states})


def _more(sequence: Sequence, wanted: dict[Sequence, int]) -> bool:
    return len(sequence.guesses) < wanted[sequence]


def _behind(sequences: List[Sequence]) -> dict[str, Array]:
    """One row of each: its last guess."""
    count = len(sequences)
    return {
        "tokens": np.array([s.guesses[-1] for s in sequences], np.int32),
        "seq": np.arange(count, dtype=np.int32),
        # the row of a token's state is that of the token before it
        "pos": np.array([len(s.tokens) + len(s.guesses) - 2 for s in sequences], np.int32),
        "block_table": block_table([s.pages for s in sequences]),
        "out_rows": np.arange(count, dtype=np.int32),
    }
