"""Artifacts for WebGPU, run by a page in headless Chromium (web/src/page.js), which asks a server here for requests."""

from __future__ import annotations

import json
import logging
import os
import secrets
import shutil
import subprocess
import tempfile
import threading
import weakref
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Empty, Queue
from typing import Any
from urllib.parse import unquote

from deepzig.artifacts.parts import Part
from deepzig.artifacts.reader import Artifact
from deepzig.errors import DeepZigError
from deepzig.web import PAGE

from .executor import LESS_CACHE
from .javascript import JavaScriptMachine

log = logging.getLogger(__name__)

NAMES = (
    *("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge"),
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
)
FLAGS = (
    *("--headless=new", "--no-first-run", "--disable-extensions", "--disable-background-networking"),
    *("--enable-unsafe-webgpu", "--enable-features=Vulkan"),
)
"""Chromium takes a GPU where there is one that it knows, else SwiftShader: the CPU."""

START_SECONDS = 60
POLL_SECONDS = 0.2

HTML = f"""<!doctype html><meta charset="utf-8"><title>DeepZig</title>
<script type="module" src="web/{PAGE.name}"></script>"""


class _Post:
    """Where the page fetches its files and requests, and leaves answers; addresses begin with a secret.

    Attributes:
        requests: for the page; an empty one ends it.
        answers: of the page.
        arrived: set when the page is there.
        gone: set when it no longer is.
    """

    def __init__(self, artifact: Artifact) -> None:
        self.requests: Queue[bytes] = Queue()
        self.answers: Queue[bytes] = Queue()
        self.arrived, self.gone = threading.Event(), threading.Event()
        self.secret = secrets.token_urlsafe()
        names = sorted(name for name in artifact.manifest.files if name.endswith(".safetensors"))
        self._weights = dict(zip(names, artifact.weight_files, strict=True))
        self._artifact = artifact

    def find(self, path: str) -> Part | None:
        """The file that an address below the secret stands for."""
        folder, _, name = path.partition("/")
        if folder == "web" and (file := PAGE.with_name(name)).is_file():
            return Part(file, 0, file.stat().st_size, name)
        if folder != "parts" or name not in self._artifact.manifest.files:
            return None
        file = self._artifact.folder / name
        return self._weights.get(name) or Part(file, 0, self._artifact.manifest.files[name].size, name)


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, post: _Post, *args: Any) -> None:
        self._post = post
        super().__init__(*args)

    def _path(self) -> str | None:
        """What follows the secret."""
        begin = f"/{self._post.secret}/"
        return unquote(self.path[len(begin) :]) if self.path.startswith(begin) else None

    def do_GET(self) -> None:
        """The page, a file, or an answer that never ends: while the page is open, so is that connection."""
        path = self._path()
        if path == "":
            self._begin(200, "text/html", len(HTML))
            self.wfile.write(HTML.encode())
        elif path == "open":
            self._begin(200, "text/plain")
            self.rfile.read(1)
            self._post.gone.set()
        elif path is not None and (part := self._post.find(path)):
            self._begin(200, "text/javascript" if part.file.suffix == ".js" else "application/octet-stream", part.size)
            for block in part.blocks():
                self.wfile.write(block)
        else:
            self.send_error(404)

    def do_POST(self) -> None:
        """Take an answer, and give the next request."""
        if self._path() != "exchange":
            self.send_error(404)
            return
        answer = self.rfile.read(int(self.headers["Content-Length"]))
        if answer:
            self._post.answers.put(answer)
        self._post.arrived.set()
        request = self._post.requests.get()
        self._begin(200, "application/json", len(request))
        self.wfile.write(request)

    def _begin(self, status: int, kind: str, size: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        if size is not None:
            self.send_header("Content-Length", str(size))
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: connections break when the page has gone, which is seen elsewhere."""


class ChromiumMachine(JavaScriptMachine):
    """The code of a checked artifact, with its weights and `pages` pages of cache, in a page of headless Chromium.

    Raises:
        DeepZigError: there is no Chromium, or it can't load the artifact.
    """

    def __init__(self, artifact: Artifact, pages: int) -> None:
        super().__init__(artifact)
        command = [_find_chromium(artifact.path), *FLAGS, *_unprivileged()]
        self._post = _Post(artifact)
        server = _Server(("127.0.0.1", 0), partial(_Handler, self._post))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        profile = tempfile.mkdtemp(prefix="deepzig-chromium-")
        address = f"http://127.0.0.1:{server.server_port}/{self._post.secret}/"
        self._process = subprocess.Popen(
            [*command, f"--user-data-dir={profile}", address], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        self._end = weakref.finalize(self, _end, self._process, server, self._post, profile)
        if not self._post.arrived.wait(START_SECONDS):
            self.close()
            raise DeepZigError("Chromium does not open a page", str(artifact.path), f"see whether {command[0]} starts")
        self._load(pages)
        log.info("Chromium runs %s; the cache holds %d pages", artifact.path, pages)

    def close(self) -> None:
        """End the process."""
        self._end()

    def _send(self, request: bytes) -> None:
        if not self._end.alive:
            raise DeepZigError("the model is closed", str(self.artifact.path), "load it again")
        self._post.requests.put(request)

    def _receive(self) -> dict[str, Any]:
        while True:
            try:
                answer: dict[str, Any] = json.loads(self._post.answers.get(timeout=POLL_SECONDS))
                return answer
            except Empty:
                if self._post.gone.is_set() or self._process.poll() is not None:
                    raise DeepZigError("Chromium ended", str(self.artifact.path), LESS_CACHE) from None


def _end(process: subprocess.Popen[bytes], server: ThreadingHTTPServer, post: _Post, profile: str) -> None:
    process.kill()
    process.wait()
    post.requests.put(b"")  # for the thread that waits for one
    server.shutdown()
    server.server_close()
    shutil.rmtree(profile, ignore_errors=True)


def _find_chromium(where: Path) -> str:
    """The program Chromium, or a relative.

    Raises:
        DeepZigError: there is none.
    """
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        hint = "install Chromium or Chrome, open the artifact in a page, or compile the model for this machine"
        raise DeepZigError("the artifact is for WebGPU, and there is no Chromium to run it", str(where), hint)
    return found


def _unprivileged() -> list[str]:
    """Chromium's sandbox does not work for the superuser, as whom containers run programs."""
    return ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
