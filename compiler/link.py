"""Linking compiled objects: by the system's compiler for the machine itself, by zig for every other."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from deepzig.cache import cache_folder
from deepzig.errors import DeepZigError

from .platforms import PLATFORMS

COMPILERS = ("c++", "g++", "clang++")
FULL = ("No space left on device", "File too large", "File size limit exceeded")
"""How linkers say that they can't write, themselves or by the signal that ends them."""


def link(objects: Sequence[str], out: str, platform: str, native: bool) -> None:
    """Link objects to a shared library.

    Args:
        objects: paths of object files.
        out: path of the library.
        platform: one of PLATFORMS.
        native: whether it is that of this machine, whose own compiler may link it.

    Raises:
        DeepZigError: there is no linker, or it fails.
    """
    command = linker(platform, native)
    data = PLATFORMS[platform]
    with tempfile.TemporaryDirectory() as scratch:
        sources = []
        for name, text in data.sources:
            (Path(scratch) / name).write_text(text)
            sources.append(str(Path(scratch) / name))
        words = [*command, *data.output, *objects, *sources, *data.flags, "-o", out]
        done = subprocess.run(words, capture_output=True, text=True, check=False, env=_environment())
    if done.returncode and any(sign in done.stderr for sign in FULL):
        raise DeepZigError("the code can't be linked: the disk is full", out, "make room and compile again")
    if done.returncode < 0:
        what = f"the linker was stopped by signal {-done.returncode}"
        raise DeepZigError(what, f"platform {platform}", "look for a limit on memory or on the size of files")
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or ["no message"]
        raise DeepZigError(f"the code can't be linked: {lines[0]}", f"platform {platform}", "rerun with --traceback")


def linker(platform: str, native: bool) -> list[str]:
    """The command that links for a platform.

    Raises:
        DeepZigError: there is none.
    """
    if native and (found := next(filter(None, map(shutil.which, COMPILERS)), None)):
        return [found]
    if find_spec("ziglang") is None:
        hint = "pip install 'deepzig[cross]'" + (", or install a C++ compiler such as g++" if native else "")
        raise DeepZigError("there is no linker", f"platform {platform}", hint)
    return [sys.executable, "-m", "ziglang", "cc", "-target", PLATFORMS[platform].zig]


def _environment() -> dict[str, str]:
    """Zig builds a C library for each platform once, and keeps it."""
    folder = str(cache_folder("zig"))
    return {**os.environ, "ZIG_GLOBAL_CACHE_DIR": folder, "ZIG_LOCAL_CACHE_DIR": folder}
