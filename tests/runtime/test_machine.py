"""What is said of the machine: read from files like Linux's, and computed from given times."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deepzig.runtime import machine

INSTALLED = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Every piece of work takes the next of these seconds, then the last for ever."""
    seconds = [0.25]
    now = 0.0
    calls = 0

    def counter() -> float:
        nonlocal now, calls
        calls += 1
        if calls % 2 == 0:
            now += seconds.pop(0) if len(seconds) > 1 else seconds[0]
        return now

    monkeypatch.setattr(machine.time, "perf_counter", counter)
    yield seconds


def test_stream_bandwidth(clock: list[float]) -> None:
    """Bytes over the median: of 0.5, 0.125, 0.25 s."""
    clock[:] = [0.5, 0.125, 0.25]
    with machine.Stream(3, 4 * 1237) as stream:
        assert stream.bandwidth(0.01) == 4 * 1237 / 0.25


def test_stream_reads_all_of_it(clock: list[float]) -> None:
    with machine.Stream(3, 4 * 1237) as stream:
        assert [len(part) for part in stream._parts] == [413, 412, 412]
        assert np.array_equal(np.concatenate(stream._parts), np.arange(1237))
    with machine.Stream(5, 4) as stream:
        assert [len(part) for part in stream._parts] == [1] * 5


def test_as_many_passes_as_fit(clock: list[float]) -> None:
    done = 0

    def work() -> None:
        nonlocal done
        done += 1

    assert machine._median_seconds(work, 2.0) == 0.25 and done == 8
    assert machine._median_seconds(work, 0.0) == 0.25 and done == 8 + machine.LEAST


def test_bandwidth_of_this_machine() -> None:
    assert machine.bandwidth(2, 0.001, 1 << 20) > 0


def test_gemm_operations(clock: list[float]) -> None:
    assert machine.own_gemm_flops(0.1, 37) == 2 * 37**3 / 0.25


def test_gemm_runs_with_the_threads_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    real = subprocess.run

    def run(command: list[str], **options: Any) -> Any:
        given.update(options)
        return real(command, **options)

    monkeypatch.setattr(machine.subprocess, "run", run)
    assert machine.gemm_flops(3, 0.001, 33) > 0
    assert {given["env"][name] for name in machine.BLAS_THREADS} == {"3"}


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


MEMINFO = "MemTotal:  99 kB\nMemFree:  3 kB\nMemAvailable:   4097 kB\n"


@pytest.mark.parametrize(
    ("cgroup", "files", "total"),
    [
        ("0::/\n", {"memory.max": "max\n"}, INSTALLED),
        ("0::/\n", {"memory.max": "123456789\n"}, 123456789),
        ("0::/a/b\n", {"memory.max": "max", "a__memory.max": "7340032", "a__b__memory.max": "9437184"}, 7340032),
        ("0::/host/path\n", {"memory.max": "8388608\n"}, 8388608),
        ("0::/../..\n", {"memory.max": "8388609\n"}, 8388609),
        (
            "5:cpu,memory:/x\n0::/\n",
            {"memory__x__memory.limit_in_bytes": "6291456", "memory__memory.limit_in_bytes": "9223372036854771712"},
            6291456,
        ),
        ("4:cpu:/x\n", {"memory__x__memory.limit_in_bytes": "6291456"}, INSTALLED),
        ("0::/\n", {"memory.max": str(2 * INSTALLED)}, INSTALLED),
    ],
)
def test_memory(cgroup: str, files: dict[str, str], total: int, tmp_path: Path) -> None:
    write(tmp_path / "proc", self__cgroup=cgroup, meminfo=MEMINFO)
    write(tmp_path / "sys", **files)
    assert machine.memory(tmp_path / "proc", tmp_path / "sys") == machine.Memory(total, 4097 << 10)


def test_memory_available_is_at_most_the_limit(tmp_path: Path) -> None:
    write(tmp_path / "proc", self__cgroup="0::/\n", meminfo=MEMINFO)
    write(tmp_path / "sys", **{"memory.max": "1048577"})
    assert machine.memory(tmp_path / "proc", tmp_path / "sys") == machine.Memory(1048577, 1048577)


def test_memory_where_nothing_tells(tmp_path: Path) -> None:
    assert machine.memory(tmp_path, tmp_path) == machine.Memory(INSTALLED, None)


def test_cpu_name(tmp_path: Path) -> None:
    write(tmp_path, cpuinfo="processor : 0\nmodel name\t: A CPU: fast\nmodel name\t: B\n")
    assert machine.cpu_name(tmp_path) == "A CPU: fast"
    assert machine.cpu_name(tmp_path / "none")


def test_cores() -> None:
    assert machine.cores() == len(os.sched_getaffinity(0))
