"""The server as a process: it listens before its models are loaded, and lets answers end when it is told to stop."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from types import FrameType

import uvicorn

from deepzig.errors import DeepZigError

from .access import Access
from .health import DRAINING, OK, Health
from .protocol import Config

log = logging.getLogger(__name__)

TICKS_A_SAVE = 100
"""What is spent of quotas is written every 10 seconds: uvicorn ticks 10 times a second."""


class Server(uvicorn.Server):
    """Listens; the first SIGTERM or Ctrl-C drains it, the second ends it.

    While it drains it still takes connections, so that whoever asks learns to go elsewhere.

    Args:
        config: uvicorn's.
        access: whose keys SIGHUP reads again, and whose quotas are kept.
        health: where it stands.
        load: loads the models, on a thread of its own.
        drain: seconds that answers have to end in.
    """

    def __init__(self, config: Config, access: Access, health: Health, load: Callable[[], None], drain: float) -> None:
        super().__init__(config)
        self._access, self._health, self._load, self._drain = access, health, load, drain
        self._error: BaseException | None = None
        self._reload = False
        self._end_at = 0.0

    def serve_until_told(self) -> None:
        """Listen, load, answer, until a signal ends it.

        Raises:
            DeepZigError: it can't listen there, or a model can't be loaded.
        """
        config = self.config
        listener = _listener(config.host, config.port)
        host, port = listener.getsockname()[:2]
        log.info("listening on http://%s:%d", f"[{host}]" if ":" in host else host, port)
        if hup := getattr(signal, "SIGHUP", None):  # Windows has none
            signal.signal(hup, self._hear_hup)
        loading = threading.Thread(target=self._load_all, name="deepzig-load")
        loading.start()
        try:
            self.run([listener])
        finally:
            loading.join()
            self._access.ledgers.quotas.save()
        if self._error:
            raise self._error

    def _load_all(self) -> None:
        try:
            self._load()
        except BaseException as error:  # told by the thread that has called
            self._error = error
            self.should_exit = True
        else:
            if self._health.status != DRAINING:
                self._health.status = OK

    def _hear_hup(self, number: int, frame: FrameType | None) -> None:
        self._reload = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Hear SIGTERM and Ctrl-C."""
        if self._health.status == DRAINING:
            self.should_exit = self.force_exit = True
            return
        self._health.status = DRAINING
        self._end_at = time.monotonic() + self._drain
        log.info("draining: %d requests are under way", self._health.under_way)

    async def on_tick(self, counter: int) -> bool:
        """Look after keys, quotas and the end, ten times a second."""
        if self._reload:
            self._reload = False
            self._access.keys.reload()
        if counter % TICKS_A_SAVE == 0:
            self._access.ledgers.quotas.save()
        if self._health.status == DRAINING and (not self._health.under_way or time.monotonic() > self._end_at):
            return True
        return await super().on_tick(counter)


def _listener(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        why = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror  # no host: below 0
        what = f"{host}:{port} can't be listened on: {why}"
        raise DeepZigError(what, "options --host and --port", "choose others, or end what listens there") from None
