"""What this machine can do: its cores, its memory, and how fast it reads and multiplies.

On a shared machine speeds change from minute to minute: measure them in the run whose figures they shall explain.
"""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

STREAM_BYTES = 1 << 29
"""Larger than what caches keep of it from one pass to the next."""

GEMM_SIZE = 1536
"""Rows and columns of the product: large enough that the time is that of the arithmetic."""

LEAST = 3
"""Passes of a measurement, however short."""

BLAS_THREADS = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
"""How the libraries that numpy multiplies with are told their number of threads, before they are loaded."""

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
LIMITS = {"": "memory.max", "memory": "memory/memory.limit_in_bytes"}
"""Controllers of a line of /proc/self/cgroup -> the file of its limit, for version 2 and 1 (man 7 cgroups)."""


def cores() -> int:
    """CPUs that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_name(proc: Path = PROC) -> str:
    """What the processor calls itself, or its architecture where the system does not tell."""
    try:
        lines = (proc / "cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


@dataclass(frozen=True)
class Memory:
    """Main memory in bytes; None where the system does not tell.

    Attributes:
        total: what this process may use: what is installed, or the limit of its container.
        available: what can be taken now without swapping; what the container has used already is not subtracted.
    """

    total: int | None
    available: int | None


def memory(proc: Path = PROC, cgroups: Path = CGROUPS) -> Memory:
    """The machine's memory; `proc` and `cgroups` are where Linux tells of it."""
    try:
        installed = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return Memory(None, None)
    total = min([installed, *_limits(proc, cgroups)])
    available = status_bytes(proc / "meminfo", "MemAvailable")
    return Memory(total, None if available is None else min(total, available))


def _limits(proc: Path, cgroups: Path) -> Iterator[int]:
    """The limits of this process' control group and of those it is in; one without has the word `max`."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, group = line.split(":", 2)
        for controller in {"", "memory"} & set(controllers.split(",")):
            folder, name = (cgroups / LIMITS[controller]).parent, Path(LIMITS[controller]).name
            inner = folder / group.lstrip("/")
            # in a container the path may be that of the host, where only the root is to be seen
            for place in {folder, *(p for p in (inner, *inner.parents) if folder in p.parents)}:
                try:
                    yield int((place / name).read_text())
                except (OSError, ValueError):
                    continue


def status_bytes(file: Path, field: str) -> int | None:
    """A field that Linux tells in kB, such as MemAvailable of /proc/meminfo, in bytes; None if it is not there."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith(f"{field}:")), None)


def _median_seconds(work: Callable[[], object], seconds: float) -> float:
    """The median time of a piece of work that is done until `seconds` are over, and LEAST times at least."""
    times: list[float] = []
    while len(times) < LEAST or sum(times) < seconds:
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


class Stream:
    """Reads one large array from memory with several threads, as a decode step reads weights."""

    def __init__(self, threads: int, size: int = STREAM_BYTES) -> None:
        data = np.arange(max(size // 4, threads), dtype=np.int32)
        self._bytes = data.nbytes
        self._parts = np.array_split(data, threads)
        self._pool = ThreadPoolExecutor(threads)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def bandwidth(self, seconds: float = 0.1) -> float:
        """Bytes a second, the median of the passes that fit into `seconds`."""
        return self._bytes / _median_seconds(lambda: list(self._pool.map(np.maximum.reduce, self._parts)), seconds)


def bandwidth(threads: int, seconds: float = 0.1, size: int = STREAM_BYTES) -> float:
    """Bytes a second that so many threads read from memory together, of an array of `size` bytes.

    It takes `seconds`, and about as long to make the array.
    """
    with Stream(threads, size) as stream:
        return stream.bandwidth(seconds)


def gemm_flops(threads: int, seconds: float = 0.2, size: int = GEMM_SIZE) -> float:
    """Floating-point operations a second of an f32 matrix product, two for each multiplication.

    It is numpy's `@` of two square matrices, by whatever BLAS numpy was built with: near what the vector units can do,
    not the theoretical peak, and without matrix units such as AMX. BLAS takes its number of threads when it is loaded,
    so this runs in a process of its own; a BLAS that knows none of the variables in BLAS_THREADS takes as many as it
    likes.

    Raises:
        subprocess.CalledProcessError: the process failed.
    """
    program = f"from {__name__} import own_gemm_flops; print(own_gemm_flops({seconds!r}, {size}))"
    environment = {**os.environ, **dict.fromkeys(BLAS_THREADS, str(threads))}
    # away from a checkout, whose folders have names of packages
    command, away = [sys.executable, "-c", program], os.path.abspath(os.sep)
    return float(subprocess.run(command, env=environment, cwd=away, check=True, capture_output=True).stdout)


def own_gemm_flops(seconds: float, size: int = GEMM_SIZE) -> float:
    """As `gemm_flops`, in this process with the threads that its BLAS has."""
    a, b = np.random.default_rng(0).standard_normal((2, size, size), np.float32)
    out = np.empty_like(a)
    return 2 * size**3 / _median_seconds(lambda: np.matmul(a, b, out), seconds)
