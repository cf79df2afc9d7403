"""What `deepzig inspect` asks of this machine beside its instruction sets."""

from __future__ import annotations

import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup/memory.max")
"""The limit of a container, in bytes, or the word `max`."""


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
    """Bytes a second that all processors together read from memory."""
    from concurrent.futures import ThreadPoolExecutor
    import time
    import numpy as np
    data = np.ones(1 << 26, np.int64)
    parts = np.array_split(data, os.cpu_count() or 1)
    with ThreadPoolExecutor(len(parts)) as pool:
        best = 1e9
        for _ in range(3):
            t = time.perf_counter()
            list(pool.map(np.maximum.reduce, parts))
            best = min(best, time.perf_counter() - t)
    return data.nbytes / best
