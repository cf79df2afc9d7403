"""Requests that want no answer but what the model makes of a text: embeddings and log-probabilities."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from deepzig.runtime.sampling import TokenLogprob, logprob_of
from deepzig.runtime.tensors import Tensor

F32 = npt.NDArray[np.float32]


class Reading:
    """Takes what calls make of the rows of one text; this one only has it read.

    Attributes:
        logits: whether the logits of all rows are wanted; then all rows are read, whatever others have read before.
    """

    logits = False

    def take(self, begin: int, logits: F32, hidden: Tensor | None, rows: range) -> None:
        """Rows were read.

        Args:
            begin: position of the first.
            logits: of these rows, f32 [n, vocab], if they are wanted.
            hidden: what the output head reads, of all rows of the call, f32 [m, hidden]; none where the artifact has
                no such output.
            rows: which of them are of this text.
        """


class Embedding(Reading):
    """The state of the last token, as the output head reads it, of length 1.

    Attributes:
        vector: f32 [hidden].
    """

    def __init__(self) -> None:
        self.vector: F32 = np.empty(0, np.float32)

    def take(self, begin: int, logits: F32, hidden: Tensor | None, rows: range) -> None:
        """Keep the last row."""
        assert hidden is not None  # who asks has looked
        last = np.asarray(hidden)[rows[-1]]
        self.vector = (last / max(float(np.linalg.norm(last.astype(np.float64))), 1e-12)).astype(np.float32)


class Score(Reading):
    """The log-probability of each token of a text, after those before it.

    Args:
        tokens: the text.
        top: how many likeliest alternatives to tell.

    Attributes:
        logprobs: one entry a token; none for the first.
    """

    logits = True

    def __init__(self, tokens: list[int], top: int) -> None:
        self._tokens, self._top = tokens, top
        self.logprobs: list[TokenLogprob | None] = [None]

    def take(self, begin: int, logits: F32, hidden: Tensor | None, rows: range) -> None:
        """Look up the tokens that follow; a text that lost its pages is read again, with the same result."""
        del self.logprobs[begin + 1 :]
        after = self._tokens[begin + 1 : begin + 1 + len(rows)]
        self.logprobs += [logprob_of(row, token, self._top) for row, token in zip(logits, after, strict=False)]
