"""An ONNX export in onnxruntime as a contender: `onnx_worker.py MODEL THREADS`, see `protocol`.

It gets the best that onnxruntime has for it: caches stay where the last call wrote them, nothing is copied to or from
Python but ids and logits.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np
from protocol import SEED, Case, serve

CHUNK = 256
"""Tokens of a text that one call reads, as an artifact does."""


class OnnxRuntime:
    """A loaded graph. Each case has caches of its own, filled once."""

    def __init__(self, model: str, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._value: Any = onnxruntime.OrtValue
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._pasts = {i.name: int(i.shape[-1]) for i in self._session.get_inputs() if i.name.startswith("past")}
        self._outputs = ["logits", *(name.replace("past_key_values", "present") for name in self._pasts)]
        self._vocab = int(self._session.get_outputs()[0].shape[-1])
        self._random = np.random.default_rng(SEED)
        self._filled: dict[Case, list[Any]] = {}

    def run(self, case: Case) -> float:
        """The seconds that a case takes."""
        if not case.prompt and case not in self._filled:
            self._filled[case] = self._read(case.batch, case.depth)
        begin = time.perf_counter()
        if case.prompt:
            self._read(1, case.prompt)
        else:
            caches = self._filled[case]
            for step in range(case.steps):
                caches = self._forward(case.batch, case.depth + step, 1, caches)
        return time.perf_counter() - begin

    def _read(self, batch: int, length: int) -> list[Any]:
        """Read random texts in chunks; the caches after it."""
        caches = [self._given(np.empty((batch, 0, width), np.float32)) for width in self._pasts.values()]
        for begin in range(0, length, CHUNK):
            caches = self._forward(batch, begin, min(CHUNK, length - begin), caches)
        return caches

    def _forward(self, batch: int, begin: int, rows: int, caches: list[Any]) -> list[Any]:
        """Read random tokens and draw the likeliest next ones; the caches after it."""
        feeds = {
            "input_ids": self._random.integers(0, self._vocab, (batch, rows)),
            "attention_mask": np.ones((batch, begin + rows), np.int64),
            "position_ids": np.tile(np.arange(begin, begin + rows), (batch, 1)),
        }
        values = {name: self._given(array) for name, array in feeds.items()}
        values |= dict(zip(self._pasts, caches, strict=True))
        logits, *presents = self._session.run_with_ort_values(self._outputs, values)
        logits.numpy()[:, -1].argmax(-1)
        return presents

    def _given(self, array: Any) -> Any:
        return self._value.ortvalue_from_numpy(array)


def main() -> None:
    """Serve the cases of a model."""
    model, threads = sys.argv[1:]
    serve(lambda: OnnxRuntime(model, int(threads)).run)


if __name__ == "__main__":
    main()
