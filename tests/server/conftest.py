"""The reference model behind a real server, in a thread of its own."""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from openai import AsyncOpenAI, AsyncStream, OpenAI

from deepzig.compiler.driver import compile_model
from deepzig.compiler.options import Options
from deepzig.runtime import Model, load
from deepzig.server import Access, Catalogue, create_app
from deepzig.server.health import Health
from deepzig.server.keys import Key, Keyring, hashed
from deepzig.server.limits import RequestLimits
from deepzig.server.protocol import Config, ConnectionLimits

REFERENCE = Path(__file__).parents[2] / "models" / "reference"
KEY = "sesame"
NAME = "reference"
MAX_BODY = 100_000


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("server") / NAME
    compile_model(REFERENCE, out, Options(dtype="f32", self_check="none", embeddings=True))
    return out


def key_of(secret: str, **limits: int) -> Key:
    return Key(name=f"name-of-{secret}", sha256=hashed(secret), **limits)


@contextmanager
def serving(*given: Any, **options: Any) -> Iterator[str]:
    """As `started`; gives the address."""
    with started(*given, **options) as server:
        yield address_of(server)


def address_of(server: uvicorn.Server) -> str:
    return f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"


@contextmanager
def started(
    models: Mapping[str, Model], access: Access, connections: ConnectionLimits | None = None,
    health: Health | None = None, **options: Any,
) -> Iterator[uvicorn.Server]:  # fmt: skip
    """Serve models."""
    app = create_app(Catalogue(models), access, health, **options)
    config = Config(
        app, connections or ConnectionLimits(), port=0, log_level="critical", timeout_graceful_shutdown=5,
        ws_max_size=access.request.body,
    )  # fmt: skip
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield server
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="session")
def model(artifact: Path) -> Iterator[Model]:
    with load(artifact, threads=1, cache_tokens=16384) as loaded:
        yield loaded


@pytest.fixture(scope="session")
def address(model: Model) -> Iterator[str]:
    access = Access(Keyring([key_of("other"), key_of(KEY)]), request=RequestLimits(body=MAX_BODY))
    with serving({NAME: model}, access) as url:
        yield url


class Waiting:
    """An asynchronous client, or a part of it, whose calls wait; streams come as lists."""

    def __init__(self, part: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._part, self._loop = part, loop

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._part, name)
        return value if inspect.ismodule(value) else Waiting(value, self._loop)

    def __call__(self, *args: Any, **named: Any) -> Any:
        return self._loop.run_until_complete(self._all(self._part(*args, **named)))

    async def _all(self, given: Any) -> Any:
        value = await given
        return [part async for part in value] if isinstance(value, AsyncStream) else value


FORMS = ["sync", "async"]


@contextmanager
def connected(form: str, address: str) -> Iterator[Any]:
    """The `openai` client of a server, in one of its forms."""
    asked: dict[str, Any] = {"base_url": f"{address}/v1", "api_key": "other", "max_retries": 0}
    if form == "sync":
        with OpenAI(**asked) as one:
            yield one
        return
    loop = asyncio.new_event_loop()
    several = AsyncOpenAI(**asked)
    yield Waiting(several, loop)
    loop.run_until_complete(several.close())
    loop.close()


@pytest.fixture(scope="session", params=FORMS)
def client(request: pytest.FixtureRequest, address: str) -> Iterator[Any]:
    """The `openai` client, in both of its forms."""
    with connected(request.param, address) as one:
        yield one


@pytest.fixture(scope="session")
def openai_client(address: str) -> Iterator[OpenAI]:
    """The `openai` client, for what only one of its forms has."""
    with connected("sync", address) as one:
        yield one
