"""The time and the memory that a program takes, from its start."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from .machine import PROC, status_bytes

INTERVAL = 0.01
"""Seconds between two looks at a program's memory."""


@dataclass(frozen=True)
class Usage:
    """What a program took.

    Attributes:
        seconds: from its start to its end.
        first_output_seconds: to its first byte of output; None if it wrote nothing.
        peak_bytes: the most memory that it occupied, mapped files included (VmHWM); None where the system does not
            tell.
        peak_private_bytes: the most without mapped files, which the system can drop at will (RssAnon, sampled).
    """

    seconds: float
    first_output_seconds: float | None
    peak_bytes: int | None
    peak_private_bytes: int | None


def measure(command: Sequence[str]) -> Usage:
    """Run a program to its end, away from the current folder.

    Raises:
        subprocess.CalledProcessError: it failed; its `stderr` says why.
    """
    peaks: dict[str, int] = {}
    ended = threading.Event()
    begin = time.perf_counter()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=os.path.abspath(os.sep)
    ) as process:
        watcher = threading.Thread(target=_watch, args=(process.pid, peaks, ended))
        watcher.start()
        try:
            assert process.stdout is not None
            first = process.stdout.read(1)
            first_seconds = time.perf_counter() - begin
            _, errors = process.communicate()
        except BaseException:
            process.kill()
            raise
        finally:
            ended.set()
            watcher.join()
    seconds = time.perf_counter() - begin
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, stderr=errors)
    return Usage(seconds, first_seconds if first else None, peaks.get("VmHWM"), peaks.get("RssAnon"))


def _watch(pid: int, peaks: dict[str, int], ended: threading.Event) -> None:
    """Note the largest values of a process' memory until it ended."""
    while True:
        for field in ("VmHWM", "RssAnon"):
            value = status_bytes(PROC / str(pid) / "status", field)
            if value is not None:
                peaks[field] = max(peaks.get(field, 0), value)
        if ended.wait(INTERVAL):
            return
