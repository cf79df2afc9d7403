"""Running a model as a benchmark does: random tokens through its entry points, many sequences at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt

from deepzig.runtime.model import Model
from deepzig.runtime.pages import Sequence
from deepzig.runtime.tensors import Tensor

from .cases import Case, Plan, Prefill

Array = npt.NDArray[Any]

Around = Callable[[str], AbstractContextManager[None]]
"""Given the name of an entry point, what its call happens in."""

SEED = 1


class Runner:
    """The cases of a plan on a loaded model.

    Tokens are drawn at random and do not depend on what the model answers, so every run does the same work, and experts
    are chosen as by different texts. Sequences keep their pages; what a case writes there, the next writes over.
    """

    def __init__(self, model: Model, plan: Plan, around: Around = lambda _: nullcontext()) -> None:
        self._model, self._plan = model, plan
        self.around = around
        self._random = np.random.default_rng(SEED)
        self._pages: list[list[int]] = []
        for room in plan.rooms:
            sequence = Sequence(model.pool)
            sequence.reserve(room)
            self._pages.append(sequence.pages)

    def fill(self) -> Iterator[None]:
        """Read a text into the cache of every sequence; yields after each call."""
        for number, depth in enumerate(self._plan.contexts):
            for _ in self._read(number, depth):
                yield

    @property
    def fills(self) -> int:
        """How many calls `fill` makes."""
        chunk = self._model.manifest.bounds.chunk
        return sum(-(-depth // chunk) for depth in self._plan.contexts)

    def run(self, case: Case, steps: int | None = None) -> float:
        """Run a case; of a decode `steps`, if not those of the plan.

        Returns:
            Seconds.
        """

        def work() -> float:
            begin = time.perf_counter()
            if isinstance(case, Prefill):
                for _ in self._read(0, case.prompt):
                    pass
            else:
                for step in range(self._plan.tokens if steps is None else steps):
                    self._step(case.batch, case.depth + step)
            return time.perf_counter() - begin

        # on the thread that has the kernels, as the engine does: to change threads costs 0.1 ms a call
        return float(self._model.backend.run(work))

    def _read(self, number: int, length: int) -> Iterator[None]:
        """Read a prompt in chunks, as `Model.generate` does: logits of its last token only."""
        bounds = self._model.manifest.bounds
        for begin in range(0, length, bounds.chunk):
            end = min(begin + bounds.chunk, length)
            entry = "prefill" if end - begin > bounds.decode_rows else "decode"
            last = [end - begin - 1] if end == length else []
            with self.around(entry):
                rows = np.zeros(end - begin, np.int32)
                logits = self._forward(entry, rows, np.arange(begin, end), [number], end, last)
                if last:
                    np.asarray(logits)  # when they can be read, the work is done
            yield

    def _step(self, batch: int, position: int) -> None:
        """Append a token to each of the first sequences, and draw the next ones greedily, by the op that samples."""
        rows = np.arange(batch)
        with self.around("decode"):
            logits = self._forward(
                "decode", rows, np.full(batch, position), list(range(batch)), position + 1, rows.tolist()
            )
        zeros = np.zeros(batch, np.float32)
        options: dict[str, Tensor] = {
            "logits": logits, "temperature": zeros, "top_k": zeros, "top_p": np.ones(batch, np.float32), "min_p": zeros,
            "seed": np.zeros((batch, 2), np.int32), "position": np.full(batch, position),
        }  # fmt: skip
        with self.around("sample"):
            np.asarray(self._model.backend.call("sample", options)[0])

    def _forward(
        self, entry: str, seq: Array, pos: Array, numbers: list[int], end: int, out_rows: list[int]
    ) -> Tensor:  # fmt: skip
        """Run random tokens; `numbers` are the sequences, which have `end` tokens after it."""
        tokens = self._random.integers(0, self._model.manifest.model["vocab_size"], len(seq))
        count = -(-end // self._model.manifest.bounds.page_size)
        table = np.array([self._pages[number][:count] for number in numbers])
        given = {
            "tokens": tokens, "seq": seq, "pos": pos, "block_table": table, "out_rows": np.array(out_rows, np.int32)
        }  # fmt: skip
        return self._model.run(entry, given)[0]
