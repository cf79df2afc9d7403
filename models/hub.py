"""Models by name, out of Hugging Face's cache on this disk; nothing is downloaded.

The layout and the variables are those of huggingface_hub: `models--{org}--{name}/snapshots/{commit}`, and
`refs/{revision}` with the commit of a branch or tag.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from deepzig.errors import DeepZigError

NAME = re.compile(r"([A-Za-z0-9][\w.-]*/[\w.-]+)(?:@([\w./-]+))?$")
"""`org/name`, or `org/name@revision`."""


def cache_folder() -> Path:
    """Where Hugging Face keeps models: HF_HUB_CACHE, or `hub` in HF_HOME, or the default."""
    if folder := os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(folder).expanduser()
    caches = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    return Path(os.environ.get("HF_HOME") or f"{caches}/huggingface").expanduser() / "hub"


def find_cached(text: str) -> Path | None:
    """The snapshot of the model called `text`, or None if that is no model's name.

    Raises:
        DeepZigError: the model, or this revision of it, was not downloaded.
    """
    match = NAME.match(text)
    if match is None or ".." in text:
        return None
    name, revision = match[1], match[2] or "main"
    folder = cache_folder() / f"models--{name.replace('/', '--')}"
    option = f" --revision {revision}" if match[2] else ""
    hint = f"hf download {name}{option}"
    if not folder.is_dir():
        what = f"there is no folder {text}, and no model {name} in Hugging Face's cache"
        raise DeepZigError(what, str(folder), f"check the path, or fetch the model: {hint}")
    ref = folder / "refs" / revision
    try:
        commit = ref.read_text(encoding="utf-8").strip() if ref.is_file() else revision
    except (OSError, ValueError):
        raise DeepZigError("the file can't be read", str(ref), hint) from None
    snapshot = folder / "snapshots" / commit
    if not re.fullmatch(r"[\w-]+", commit) or not snapshot.is_dir():
        raise DeepZigError(f"revision {revision} of {name} was not downloaded", str(folder), hint)
    return snapshot
