"""One libtvm_runtime in a process."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deepzig.runtime import library
from deepzig.runtime.library import default_threads

RUNTIME = "lib/x86_64-linux/libtvm_runtime.so"
COUNT = """
maps = open("/proc/self/maps").read().splitlines()
print(len({line.split()[-1] for line in maps if "/libtvm_runtime." in line}))
"""
LOADS = """
import sys
import deepzig.runtime
for path in sys.argv[1:]:
    try:
        deepzig.runtime.load(path, threads=1).close()
    except deepzig.errors.DeepZigError as error:
        print(error)
"""


def python(program: str, *arguments: object, **env: str) -> str:
    command = [sys.executable, "-P", "-c", program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **env})
    assert done.returncode == 0, done.stderr
    return done.stdout


def other_build(artifact: Path, to: Path) -> Path:
    """A copy of the artifact whose runtime library has one byte more."""
    shutil.copytree(artifact, to)
    library = to / RUNTIME
    library.write_bytes(library.read_bytes() + b"\0")
    manifest = json.loads((to / "manifest.json").read_text())
    data = library.read_bytes()
    manifest["files"][RUNTIME] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (to / "manifest.json").write_text(json.dumps(manifest))
    return to


def test_artifacts_share_the_library(artifact: Path, tmp_path: Path) -> None:
    shutil.copytree(artifact, tmp_path / "copy")
    assert python(LOADS + COUNT, artifact, tmp_path / "copy", artifact) == "1\n"


def test_the_compilers_library_is_used_if_it_is_there(artifact: Path) -> None:
    assert python("import tvm" + LOADS + COUNT, artifact) == "1\n"


def test_another_build_is_refused(artifact: Path, tmp_path: Path) -> None:
    """Not loaded beside the one that is there: that would abort the process."""
    other = other_build(artifact, tmp_path / "other")
    for first, second in ((artifact, other), (other, artifact)):
        told = python(LOADS + COUNT, first, second)
        assert told == (
            "another libtvm_runtime.so is loaded in this process\n"
            f"  at: {first}/{RUNTIME}\n"
            "  fix: load the artifact in a process of its own\n1\n"
        )


def test_code_that_was_replaced_is_refused(artifact: Path, tmp_path: Path) -> None:
    """The system would give the old code again, for the new weights."""
    program = """
import json, hashlib, pathlib, sys
import deepzig.runtime
path = pathlib.Path(sys.argv[1])
for turn in range(3):
    try:
        deepzig.runtime.load(path, threads=1).close()
    except deepzig.errors.DeepZigError as error:
        print(error)
    if turn == 1:
        code = path / "code" / "native.so"
        data = code.read_bytes() + b"x"
        code.unlink()
        code.write_bytes(data)
        manifest = json.loads((path / "manifest.json").read_text())
        manifest["files"]["code/native.so"] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        (path / "manifest.json").write_text(json.dumps(manifest))
"""
    shutil.copytree(artifact, tmp_path / "copy")
    assert python(program, tmp_path / "copy") == (
        "the artifact was replaced since this process loaded it\n"
        f"  at: {tmp_path / 'copy'}\n"
        "  fix: load the new artifact in a new process, or from another folder\n"
    )


@pytest.mark.parametrize(("given", "want"), [("3", 3), ("0", None), ("many", None), ("", None)])
def test_default_threads(given: str, want: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPZIG_THREADS", given)
    assert default_threads() == (want or len(os.sched_getaffinity(0)))


def test_what_a_mac_has_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    images = [b"/usr/lib/libSystem.B.dylib", b"/site/tvm/lib/libtvm_runtime_metal.dylib", b"/a/libtvm_runtime.dylib"]
    process = SimpleNamespace(_dyld_image_count=lambda: len(images), _dyld_get_image_name=Function(images.__getitem__))
    monkeypatch.setattr(library.platform, "system", lambda: "Darwin")
    monkeypatch.setattr(library.ctypes, "CDLL", lambda name: process)
    assert library._loaded("tvm_runtime") == Path("/a/libtvm_runtime.dylib")
    assert library._loaded("tvm_runtime_metal") == Path("/site/tvm/lib/libtvm_runtime_metal.dylib")
    images.pop()
    assert library._loaded("tvm_runtime") is None


@pytest.mark.parametrize("handle", [0, 1 << 40])
def test_what_windows_has_loaded(handle: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def find(name: str) -> int:
        return handle if name == "tvm_runtime.dll" else 0

    def write(module: Any, buffer: Any, size: int) -> None:
        assert module.value == handle and size == len(buffer)
        buffer.value = "/site/tvm_runtime.dll"

    kernel = SimpleNamespace(GetModuleHandleW=Function(find), GetModuleFileNameW=write)
    monkeypatch.setattr(library.platform, "system", lambda: "Windows")
    monkeypatch.setattr(library.ctypes, "windll", SimpleNamespace(kernel32=kernel), raising=False)
    assert library._loaded("tvm_runtime") == (Path("/site/tvm_runtime.dll") if handle else None)
    assert library._loaded("tvm_runtime_cuda") is None


class Function:
    """A foreign function as ctypes has it."""

    restype: Any = None

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, *args: Any) -> Any:
        return self.function(*args)
