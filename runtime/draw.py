"""Drawing tokens by the artifact's own op, from logits that stay where they lie."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from .sampling import SamplingOptions
from .tensors import Tensor

Array = npt.NDArray[Any]
F32 = npt.NDArray[np.float32]


class Backend(Protocol):
    """What runs the entry points; the VM, onnxruntime, or a stand-in for tests."""

    def call(self, entry: str, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Outputs of an entry point for these inputs, each of which may be an output itself."""
        ...

    def close(self) -> None:
        """Free what it holds."""


class Sampler:
    """Draws the tokens of one answer.

    Args:
        backend: has the op.
        options: temperature and filters.
        key: of the random numbers, i32 [2].
    """

    def __init__(self, backend: Backend, options: SamplingOptions, key: Array) -> None:
        self._backend, self._options, self._key = backend, options, key
        self._fixed: dict[int, dict[str, Array]] = {}

    def draw(self, logits: Tensor, position: int) -> list[int]:
        """A token for each row of logits, f32 [r, vocab]; the rows are of `position` and those that follow.

        It is NO_TOKEN where the largest logit is not finite.
        """
        rows = len(logits)
        if rows not in self._fixed:
            self._fixed[rows] = self._arrays(rows)
        inputs: dict[str, Tensor] = {
            "logits": logits, **self._fixed[rows], "position": np.arange(position, position + rows, dtype=np.int32)
        }  # fmt: skip
        tokens: list[int] = np.asarray(self._backend.call("sample", inputs)[0]).tolist()
        return tokens

    def _arrays(self, rows: int) -> dict[str, Array]:
        o = self._options
        floats = {"temperature": o.temperature, "top_p": o.top_p, "min_p": o.min_p}
        return {
            **{name: np.full(rows, value, np.float32) for name, value in floats.items()},
            "top_k": np.full(rows, o.top_k, np.int32),
            "seed": np.tile(self._key, (rows, 1)),
        }


def edited(logits: Tensor, options: SamplingOptions, prompt: list[int], answer: list[int], known: int) -> F32:
    """A copy of logits, on the CPU, with the edits that were asked for.

    Args:
        logits: f32 [r, vocab], of the token after the first `known` of the answer, and of those that follow.
        options: penalties and bias.
        prompt: what was read.
        answer: what was drawn, then what was guessed: a row is edited as if the guesses before it were right.
        known: how many were drawn.
    """
    rows: F32 = np.array(logits)
    for row, values in enumerate(rows):
        options.edit(values, prompt, answer[: known + row])
    return rows
