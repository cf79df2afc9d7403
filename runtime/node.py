"""Artifacts for WebAssembly, run by node in a process of its own (web/src/serve.js)."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

from deepzig.artifacts.reader import Artifact
from deepzig.errors import DeepZigError
from deepzig.web import SERVE

from .executor import LESS_CACHE
from .javascript import JavaScriptMachine

log = logging.getLogger(__name__)

NODE = "node"
LEAST = 18
"""The first version of node that has all that is used."""


class NodeMachine(JavaScriptMachine):
    """The code of a checked artifact, with its weights and `pages` pages of cache, in a process of node.

    Raises:
        DeepZigError: there is no node, or it can't load the artifact.
    """

    def __init__(self, artifact: Artifact, pages: int, threads: int | None = None) -> None:
        if threads is not None and threads > 1:
            what = f"code for WebAssembly runs on one thread, not on {threads}"
            raise DeepZigError(what, str(artifact.path), "leave the number of threads out")
        super().__init__(artifact)
        self._process = subprocess.Popen(
            [_find_node(artifact.path), str(SERVE)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        names = sorted(name for name in artifact.manifest.files if name.endswith(".safetensors"))
        places = {
            name: {"file": str(part.file), "begin": part.begin, "size": part.size}
            for name, part in zip(names, artifact.weight_files, strict=True)
        }
        self._load(pages, folder=str(artifact.folder), places=places)
        log.info("node runs %s; the cache holds %d pages", artifact.path, pages)

    def close(self) -> None:
        """End the process."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert stream is not None
            with suppress(BrokenPipeError):
                stream.close()

    def _send(self, request: bytes) -> None:
        stdin = self._process.stdin
        assert stdin is not None
        try:
            stdin.write(request + b"\n")
            stdin.flush()
        except (OSError, ValueError) as error:  # the pipe is broken or closed
            raise self._ended() from error

    def _receive(self) -> dict[str, Any]:
        stdout = self._process.stdout
        assert stdout is not None
        try:
            answer: dict[str, Any] = json.loads(stdout.readline())
        except (OSError, ValueError) as error:  # the pipe is closed, or nothing came
            raise self._ended() from error
        return answer

    def _ended(self) -> DeepZigError:
        errors = self._process.stderr
        assert errors is not None
        if errors.closed:
            return DeepZigError("the model is closed", str(self.artifact.path), "load it again")
        self._process.wait()
        lines = [line for line in errors.read().decode(errors="replace").splitlines() if "rror" in line]
        why = lines[0].strip() if lines else f"exit status {self._process.returncode}"
        return DeepZigError(f"node ended: {why}", str(self.artifact.path), LESS_CACHE)


def _find_node(where: Path) -> str:
    """The program node.

    Raises:
        DeepZigError: there is none, or it is too old.
    """
    found = shutil.which(NODE)
    hint = f"install Node.js {LEAST} or later, or compile the model for this machine"
    if found is None:
        raise DeepZigError("the artifact is for WebAssembly, and there is no node to run it", str(where), hint)
    version = subprocess.run([found, "--version"], capture_output=True, text=True, check=False).stdout.strip()
    major = version.removeprefix("v").partition(".")[0]
    if not major.isdigit() or int(major) < LEAST:
        raise DeepZigError(f"the artifact is for WebAssembly, and node {version} is too old", str(where), hint)
    return found
