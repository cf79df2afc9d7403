"""The stages of a compilation, told to whoever wants to know and to the log."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
"""Called with a stage, how much of it is done, and how much there is."""


def logged(progress: Progress) -> Progress:
    """`progress`, which also logs the seconds of each stage; stages follow each other."""
    begin = time.perf_counter()

    def update(stage: str, done: int, total: int) -> None:
        nonlocal begin
        progress(stage, done, total)
        if done == total:
            now = time.perf_counter()
            log.info("%s: %.2f s", stage, now - begin)
            begin = now

    return update
