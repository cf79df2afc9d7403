"""DeepZig and transformers behind one interface, each in a process of its own.

As a program (`contenders.py transformers FOLDER THREADS`) it starts cold and writes a byte at the first token.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

Generate = Callable[[list[int], int], list[float]]
"""Prompt and number of tokens -> seconds from the call to each token, greedy and not stopping early."""

SHORT_PROMPT = list(range(100, 116))


def deepzig(artifact: Path, threads: int) -> Generate:
    """The artifact in DeepZig's runtime."""
    import deepzig.runtime

    model = deepzig.runtime.load(artifact, threads=threads)

    def generate(prompt: list[int], count: int) -> list[float]:
        begin = time.perf_counter()
        pieces = model.stream(prompt, max_tokens=count, temperature=0.0, ignore_eos=True)
        return [time.perf_counter() - begin for _ in pieces]

    return generate


def transformers(checkpoint: Path, threads: int) -> Generate:
    """The checkpoint in transformers, in bf16 and otherwise with its defaults."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    model: Any = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16)

    class Clock:
        """A streamer that keeps the time instead of the tokens; it is given the prompt first."""

        def __init__(self) -> None:
            self.times: list[float] = []

        def put(self, _: Any) -> None:
            self.times.append(time.perf_counter())

        def end(self) -> None:
            pass

    def generate(prompt: list[int], count: int) -> list[float]:
        clock = Clock()
        ids = torch.tensor([prompt])
        begin = time.perf_counter()
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=count,
            min_new_tokens=count,
            streamer=clock,
        )
        return [at - begin for at in clock.times[1:]]

    return generate


CONTENDERS: dict[str, Callable[[Path, int], Generate]] = {"deepzig": deepzig, "transformers": transformers}


class Worker:
    """A contender in its own process, so that thread pools and memory stay apart."""

    def __init__(self, name: str, folder: Path, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(name, folder, threads, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def generate(self, prompt: list[int], count: int) -> list[float]:
        """Seconds from the call to each token.

        Raises:
            EOFError: the process died; it has said why.
        """
        self._pipe.send((prompt, count))
        times: list[float] = self._pipe.recv()
        assert len(times) == count, f"{len(times)} tokens instead of {count}"
        return times

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join()


def _serve(name: str, folder: Path, threads: int, pipe: Connection) -> None:
    generate = CONTENDERS[name](folder, threads)
    while True:
        try:
            prompt, count = pipe.recv()
        except EOFError:
            return
        pipe.send(generate(prompt, count))


def main() -> None:
    """Load, make one token, say so."""
    name, folder, threads = sys.argv[1:]
    CONTENDERS[name](Path(folder), int(threads))(SHORT_PROMPT, 1)
    os.write(1, b".")


if __name__ == "__main__":
    main()
