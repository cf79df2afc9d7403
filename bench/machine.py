"""What the machine does: its memory bandwidth, and the time and memory that a command takes."""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

STREAM_BYTES = 1 << 30
"""Larger than what caches keep of it from one pass to the next."""


def cores() -> int:
    """CPUs that this process may run on."""
    return len(os.sched_getaffinity(0))


class Stream:
    """Reads one large array from memory with several threads, as a decode step reads weights."""

    def __init__(self, threads: int) -> None:
        data = np.arange(STREAM_BYTES // 4, dtype=np.int32)
        self._parts = np.array_split(data, threads)
        self._pool = ThreadPoolExecutor(threads)

    def bandwidth(self, passes: int = 4) -> float:
        """Bytes a second, the median of a few passes."""
        return STREAM_BYTES / statistics.median(self._seconds() for _ in range(passes))

    def _seconds(self) -> float:
        begin = time.perf_counter()
        list(self._pool.map(np.maximum.reduce, self._parts))
        return time.perf_counter() - begin


@dataclass(frozen=True)
class Usage:
    """What a command took: seconds, and the peak of its private (not file-backed) memory in bytes."""

    seconds: float
    peak_bytes: int


def measure(command: Sequence[str]) -> Usage:
    """Run a command to its end.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    begin = time.perf_counter()
    peak = 0
    with subprocess.Popen(command) as process:
        while process.poll() is None:
            peak = max(peak, _private_bytes(process.pid))
            time.sleep(0.02)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return Usage(time.perf_counter() - begin, peak)


def _private_bytes(pid: int) -> int:
    """RssAnon: mapped files, which the kernel can drop at will, do not count."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("RssAnon:"))


def seconds_to_first_byte(command: Sequence[str]) -> float:
    """From the start of a process to its first byte of output.

    Raises:
        RuntimeError: it ended without any.
    """
    begin = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        first = process.stdout.read(1)
        seconds = time.perf_counter() - begin
        process.stdout.read()
    if not first or process.returncode:
        raise RuntimeError(f"no output from {command[0]}")
    return seconds
