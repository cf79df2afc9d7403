"""The folder where DeepZig keeps what it can make or fetch again."""

from __future__ import annotations

import os
from pathlib import Path

from .errors import DeepZigError

VARIABLE = "DEEPZIG_CACHE"


def cache_folder(name: str) -> Path:
    """A folder for one kind of things, made if need be, which only its owner may use.

    It is in DEEPZIG_CACHE, else in `deepzig` in the user's cache folder (XDG base directory specification).

    Raises:
        DeepZigError: it can't be made, or belongs to somebody else.
    """
    hint = f"name another folder with {VARIABLE}"
    try:
        base = os.environ.get(VARIABLE) or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "deepzig"
    except RuntimeError:
        raise DeepZigError("this user has no home folder to keep a cache in", VARIABLE, hint) from None
    folder = Path(base).absolute() / name
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        owner = folder.stat().st_uid
        if hasattr(os, "getuid") and owner != os.getuid():
            raise DeepZigError("the cache folder belongs to another user", str(folder), hint)
        folder.chmod(0o700)
    except OSError as error:
        raise DeepZigError(f"the cache folder can't be used: {error.strerror}", str(folder), hint) from None
    return folder
