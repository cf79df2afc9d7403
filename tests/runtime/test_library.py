"""One libtvm_runtime in a process."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

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
            "another libtvm_runtime is loaded in this process\n"
            f"  at: {first}/{RUNTIME}\n"
            "  fix: load the artifact in a process of its own\n1\n"
        )


@pytest.mark.parametrize(("given", "want"), [("3", 3), ("0", None), ("many", None), ("", None)])
def test_default_threads(given: str, want: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPZIG_THREADS", given)
    assert default_threads() == (want or len(os.sched_getaffinity(0)))
