"""What a contender's process is asked and answers: a JSON object a line, on its standard input and output.

It needs nothing but the standard library, since contenders run in environments of their own.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

SEED = 1


class Case(NamedTuple):
    """A piece of work; a prefill where `prompt` is not 0.

    Attributes:
        prompt: tokens to read into an empty cache, with the logits of the last one.
        batch: sequences that are decoded together.
        depth: tokens that each of them has in the cache before the first step.
        steps: tokens that each gets.
    """

    prompt: int = 0
    batch: int = 1
    depth: int = 0
    steps: int = 0

    def __str__(self) -> str:
        return f"prefill of {self.prompt}" if self.prompt else f"decode, batch {self.batch}, depth {self.depth}"

    @property
    def tokens(self) -> int:
        """Tokens that are read, or drawn by all sequences together."""
        return self.prompt or self.batch * self.steps


def serve(start: Callable[[], Callable[[Case], float]]) -> None:
    """Answer with the seconds of each case that is asked for, until the input ends.

    What libraries print goes to the standard error. This folder leaves the path, so that they don't take its modules
    for theirs.

    Args:
        start: makes the contender ready, and returns what does a case; how often it may be done is not known.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [folder for folder in sys.path if os.path.abspath(folder) != here]

    def answer(content: dict[str, Any]) -> None:
        sys.stdout.flush()  # so that the log has, when an answer is there, what was printed before
        print(json.dumps(content), file=answers, flush=True)

    try:
        run = start()
        answer({})
        for line in sys.stdin:
            answer({"seconds": run(Case(**json.loads(line)))})
    except Exception as error:
        traceback.print_exc()  # first: who reads the answer ends this process
        answer({"error": f"{type(error).__name__}: {error}"})
        sys.exit(1)
