"""The hidden folder in which an artifact is made, beside the place where it shall be.

It is called `.NAME.deepzig-*` and locked as long as its process lives. What a killed process has left is cleared by the
next that writes to the same place; what a living one works in is let be.
"""

from __future__ import annotations

import ctypes
import os
import secrets
import shutil
import sys
from contextlib import suppress
from pathlib import Path

if sys.platform != "win32":
    import fcntl

AT_FDCWD, RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h

NEW, OLD, SCRATCH = "new", "artifact", "scratch"
"""Folders in it: what is being made, what it replaces, and what is thrown away."""


class Workplace:
    """A new folder for what shall be at `out`; leftovers of others for the same place are cleared first.

    Attributes:
        folder: where.

    Raises:
        OSError: it can't be made.
    """

    def __init__(self, out: Path) -> None:
        self._out = Path(os.path.abspath(out))  # a name for `.`, too
        self._lock: int | None = None
        self._out.parent.mkdir(parents=True, exist_ok=True)
        self.folder = self._out.with_name(_prefix(self._out) + secrets.token_hex(4))
        try:
            while not self.folder.exists():  # again where another took it for a leftover before it was locked
                if self._lock is not None:
                    os.close(self._lock)
                for name in (NEW, SCRATCH):
                    (self.folder / name).mkdir(parents=True, exist_ok=True)
                self._lock = _hold(self.folder, wait=True)
        except BaseException:
            self.close()
            raise

    def publish(self) -> None:
        """Put what is in NEW in its place, at once where the system can.

        Else what was there goes to OLD first, and comes back in `close` if this fails.
        """
        if os.path.lexists(self._out):
            if _exchange(self.folder / NEW, self._out):
                return
            os.rename(self._out, self.folder / OLD)
        os.rename(self.folder / NEW, self._out)

    def close(self) -> None:
        """Remove the folder, whole: an interrupt is not heard before that is done."""
        while True:
            try:
                _clear(self.folder, self._out)
                break
            except KeyboardInterrupt:
                continue
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def clear_leftovers(out: Path) -> None:
    """Clear what killed processes have left of their work on `out`; an artifact that they moved comes back."""
    place = Path(os.path.abspath(out))
    with suppress(OSError):
        for entry in sorted(os.listdir(place.parent)):
            if not entry.startswith(_prefix(place)):
                continue
            lock = _hold(place.with_name(entry), wait=False)
            if lock is not None:
                _clear(place.with_name(entry), place)
                os.close(lock)


def _prefix(out: Path) -> str:
    return f".{out.name}.deepzig-"


def _clear(folder: Path, out: Path) -> None:
    with suppress(OSError):  # then the old artifact stays where it is
        if os.path.lexists(folder / OLD) and not os.path.lexists(out):
            os.rename(folder / OLD, out)
        shutil.rmtree(folder, ignore_errors=True)


def _hold(folder: Path, wait: bool) -> int | None:
    """A descriptor whose lock on the folder ends with the process; none where another has it, or locks are unknown."""
    if sys.platform == "win32":
        return None
    descriptor = None
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        return descriptor
    except OSError:
        if descriptor is not None:
            os.close(descriptor)
        return None


def _exchange(a: Path, b: Path) -> bool:
    """Let two folders change places at once, where the system can (renameat2 of Linux): whether it was done."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    return int(rename(AT_FDCWD, os.fsencode(a), AT_FDCWD, os.fsencode(b), RENAME_EXCHANGE)) == 0
