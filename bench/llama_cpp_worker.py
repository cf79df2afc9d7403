"""llama.cpp as a contender: `llama_cpp_worker.py MODEL.gguf THREADS`, see `protocol`.

Threads spin between operations (OMP_WAIT_POLICY=active), which is llama.cpp's best setting: whoever runs this stops the
process while others are measured. Weights are memory-mapped. Flash attention is tried on and off in the first run of a
case, and the better is kept.
"""

from __future__ import annotations

import importlib
import os
import random
import sys
import time
from typing import Any

from protocol import SEED, Case, serve

UBATCH = 512
"""Rows that a matrix product sees at once, llama.cpp's default."""

PAD = 256
"""Tokens of cache of a sequence come in multiples of this."""


class LlamaCpp:
    """A model; its contexts are made for the first case that needs them."""

    def __init__(self, path: str, threads: int) -> None:
        self.c: Any = importlib.import_module("llama_cpp")
        self._quiet = self.c.llama_log_callback(lambda *_: None)
        self.c.llama_log_set(self._quiet, None)
        self.c.llama_backend_init()
        parameters = self.c.llama_model_default_params()
        parameters.n_gpu_layers = 0
        self._model = self.c.llama_model_load_from_file(path.encode(), parameters)
        if not self._model:
            raise RuntimeError(f"llama.cpp can't load {path}")
        self._vocab = self.c.llama_vocab_n_tokens(self.c.llama_model_get_vocab(self._model))
        self._threads = threads
        self._random = random.Random(SEED)
        self._contexts: dict[tuple[int, int, bool, int | None], Any] = {}
        self._better: dict[Case, bool] = {}

    def warm_up(self) -> LlamaCpp:
        """Bring the weights into memory: by enough tokens that all experts are chosen."""
        self._run(Case(prompt=UBATCH), False)
        return self

    def run(self, case: Case) -> float:
        """The seconds that a case takes."""
        if case not in self._better:
            times = {flash: self._run(case, flash) for flash in (False, True)}
            self._better[case] = times[True] < times[False]
            return min(times.values())
        return self._run(case, self._better[case])

    def _run(self, case: Case, flash: bool) -> float:
        context, filled = self._context(case.batch, case.prompt or case.depth + case.steps, flash)
        memory = self.c.llama_get_memory(context)
        if not case.prompt:
            for number in range(case.batch):
                have = filled.get(number, 0)
                if have < case.depth:
                    self._read(context, number, have, case.depth)
                # what an earlier case wrote after the depth is forgotten
                self.c.llama_memory_seq_rm(memory, number, case.depth, -1)
                filled[number] = case.depth
        else:
            self.c.llama_memory_clear(memory, False)
            filled.clear()
        begin = time.perf_counter()
        if case.prompt:
            self._read(context, 0, 0, case.prompt)
        for step in range(case.steps):
            rows = [(self._token(), case.depth + step, number, True) for number in range(case.batch)]
            self._decode(context, rows)
            for row in range(case.batch):
                self._greedy(self.c.llama_get_logits_ith(context, row))
        return time.perf_counter() - begin

    def logits(self, tokens: list[int], flash: bool) -> Any:
        """Logits of all positions, f32 [n, vocab], with an f32 cache: half read at once, the others one by one."""
        import numpy as np

        context, _ = self._context(1, len(tokens), flash, self.c.GGML_TYPE_F32)
        self.c.llama_memory_clear(self.c.llama_get_memory(context), False)
        half = len(tokens) // 2
        rows = [(token, i, 0, True) for i, token in enumerate(tokens)]
        made = []
        for part in (rows[:half], *([row] for row in rows[half:])):
            self._decode(context, part)
            for i in range(len(part)):
                made.append(np.ctypeslib.as_array(self.c.llama_get_logits_ith(context, i), (self._vocab,)).copy())
        return np.stack(made)

    def _context(
        self, sequences: int, length: int, flash: bool, cache: int | None = None
    ) -> tuple[Any, dict[int, int]]:
        """A context for so many sequences of a length, and how many tokens each has of what cases need."""
        room = -(-length // PAD) * PAD
        key = sequences, room, flash, cache
        if key not in self._contexts:
            p = self.c.llama_context_default_params()
            p.n_ctx, p.n_seq_max, p.kv_unified = room * sequences, sequences, False
            p.n_batch = p.n_ubatch = UBATCH
            p.n_threads = p.n_threads_batch = self._threads
            p.flash_attn_type = self.c.LLAMA_FLASH_ATTN_TYPE_ENABLED if flash else self.c.LLAMA_FLASH_ATTN_TYPE_DISABLED
            if cache is not None:
                p.type_k = p.type_v = cache
            context = self.c.llama_init_from_model(self._model, p)
            if not context:
                raise RuntimeError(f"llama.cpp makes no context of {p.n_ctx} tokens")
            self._contexts[key] = context, {}
        return self._contexts[key]

    def _token(self) -> int:
        return self._random.randrange(self._vocab)

    def _read(self, context: Any, number: int, begin: int, end: int) -> None:
        """Read random tokens into a sequence; the last has logits."""
        for first in range(begin, end, UBATCH):
            last = min(first + UBATCH, end)
            self._decode(context, [(self._token(), at, number, at == end - 1) for at in range(first, last)])

    def _decode(self, context: Any, rows: list[tuple[int, int, int, bool]]) -> None:
        """One call: token, position, sequence and whether logits are wanted of each row."""
        batch = self.c.llama_batch_init(len(rows), 0, 1)
        batch.n_tokens = len(rows)
        for i, (token, position, number, wanted) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, position, 1
            batch.seq_id[i][0], batch.logits[i] = number, wanted
        status = self.c.llama_decode(context, batch)
        self.c.llama_batch_free(batch)
        if status:
            raise RuntimeError(f"llama_decode returned {status}")
        self.c.llama_synchronize(context)

    def _greedy(self, logits: Any) -> int:
        import numpy as np

        return int(np.ctypeslib.as_array(logits, (self._vocab,)).argmax())


def main() -> None:
    """Serve the cases of a model."""
    path, threads = sys.argv[1:]
    serve(lambda: LlamaCpp(path, int(threads)).warm_up().run)


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "active")
    main()
