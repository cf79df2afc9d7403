"""What `deepzig inspect` asks of this machine beside its instruction sets."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

from deepzig.runtime.library import default_threads

CGROUP = Path("/sys/fs/cgroup/memory.max")
"""The limit of a container, in bytes, or the word `max`."""

STREAM_BYTES = 1 << 29
"""Larger than what caches keep of it from one pass to the next."""

PASSES = 3
"""The quickest counts: a limit is asked for."""


def ram_bytes(cgroup: Path = CGROUP) -> int | None:
    """The memory that this process may use; None where the system does not tell."""
    try:
        installed = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None
    try:
        return min(installed, int(cgroup.read_text()))
    except (OSError, ValueError):
        return installed


def bandwidth() -> float:
    """Bytes a second that the threads of the kernels read from memory together; takes less than a second."""
    threads = default_threads()
    data = np.ones(STREAM_BYTES // 8, np.int64)
    with ThreadPoolExecutor(threads) as pool:
        return data.nbytes / min(_seconds(pool, np.array_split(data, threads)) for _ in range(PASSES))


def _seconds(pool: ThreadPoolExecutor, parts: Sequence[npt.NDArray[np.int64]]) -> float:
    begin = time.perf_counter()
    list(pool.map(np.maximum.reduce, parts))
    return time.perf_counter() - begin
