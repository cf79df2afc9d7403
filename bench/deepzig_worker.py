"""An artifact in DeepZig's runtime as a contender: `deepzig_worker.py ARTIFACT THREADS TOKENS`, see `protocol`.

TOKENS of cache are allocated, for the cases together.
"""

from __future__ import annotations

import sys
from pathlib import Path

from protocol import Case, serve

from deepzig.runtime import load
from deepzig.runtime.bench.cases import Decode, Plan, Prefill
from deepzig.runtime.bench.runner import Runner


class DeepZig:
    """A loaded artifact. Each case has its own pages, filled once."""

    def __init__(self, artifact: Path, threads: int, tokens: int) -> None:
        self._model = load(artifact, threads=threads, cache_tokens=tokens)
        self._runners: dict[Case, Runner] = {}

    def run(self, case: Case) -> float:
        """The seconds that a case takes."""
        wanted = Prefill(case.prompt) if case.prompt else Decode(case.batch, case.depth)
        if case not in self._runners:
            length = case.prompt or case.depth + case.steps
            plan = Plan((wanted,), case.steps, (case.depth,) * case.batch, (length,) * case.batch, ())
            self._runners[case] = Runner(self._model, plan)
            for _ in self._runners[case].fill():
                pass
        return self._runners[case].run(wanted)


def main() -> None:
    """Serve the cases of an artifact."""
    artifact, threads, tokens = sys.argv[1:]
    serve(lambda: DeepZig(Path(artifact), int(threads), int(tokens)).run)


if __name__ == "__main__":
    main()
