"""Folders that are written beside their final place: who holds one, and what a killed process left behind."""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
from glob import escape
from pathlib import Path
from typing import IO

if sys.platform != "win32":
    import fcntl

LOCK = ".lock"
"""A file in an unfinished folder that its process holds a lock on; the system lets go of it when the process ends."""

AT_FDCWD, RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h


def hold(folder: Path) -> IO[bytes]:
    """Mark a folder as being written, as long as the result is open."""
    file = (folder / LOCK).open("wb")
    if sys.platform != "win32":
        fcntl.flock(file, fcntl.LOCK_EX)
    return file


def remove_leftovers(out: Path) -> None:
    """Remove unfinished folders for `out` whose process has ended; what a living one writes is let be."""
    if sys.platform == "win32":
        return
    for folder in out.parent.glob(f".{escape(out.name)}.*"):
        try:
            with (folder / LOCK).open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            continue  # held, or none of ours


def exchange(a: Path, b: Path) -> bool:
    """Let two folders change places at once, where the system can (renameat2 of Linux): whether it was done."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    return int(rename(AT_FDCWD, os.fsencode(a), AT_FDCWD, os.fsencode(b), RENAME_EXCHANGE)) == 0
