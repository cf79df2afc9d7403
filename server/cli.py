"""The command `deepzig serve`."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from functools import partial
from pathlib import Path

import click
import uvicorn
from fastapi import FastAPI

from deepzig.errors import DeepZigError
from deepzig.runtime import Model, Settings, load

from .app import create_app
from .limits import Access

EXAMPLES = """
\b
Examples:
  deepzig serve artifacts/built/demo
  DEEPZIG_API_KEY=secret deepzig serve artifacts/built/demo --host 0.0.0.0
  curl http://127.0.0.1:8080/v1/models
"""


@click.command(epilog=EXAMPLES, context_settings={"auto_envvar_prefix": "DEEPZIG"})
@click.argument("artifact", type=click.Path())
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8080, show_default=True, type=click.IntRange(0, 65535), help="Port; 0 for a free one.")
@click.option("--served-name", help="What clients call the model; by default the artifact's name.")
@click.option("--api-key", help="The key that clients must send; better set by the environment.")
@click.option("--api-key-file", type=click.Path(), help="A file with such keys, one a line.")
@click.option("--insecure", is_flag=True, help="Listen on any address without a key.")
@click.option("--device", help="Where it runs: cpu, cuda, cuda:1 or metal; by default where it can.")
@click.option("--threads", type=click.IntRange(1), help="Threads of the kernels; by default all processors.")
@click.option("--cache-tokens", type=click.IntRange(1), help="Tokens that the cache holds.")
@click.option("--max-waiting", default=256, show_default=True, type=click.IntRange(1), help="Requests that may wait.")
@click.option("--max-body", default=16 << 20, show_default=True, type=click.IntRange(1), help="Bytes of a request.")
@click.option("--drain", default=60, show_default=True, type=click.IntRange(0), help="Seconds for answers to end in.")
@click.option("--replicas", type=click.IntRange(1), help="Copies, each a process of its own, by Ray (extra [ray]).")
@click.option("--traceback", is_flag=True, help="Show where an error comes from.")
def serve(
    artifact: str, host: str, port: int, served_name: str | None, api_key: str | None, api_key_file: str | None,
    insecure: bool, device: str | None, threads: int | None, cache_tokens: int | None, max_waiting: int, max_body: int,
    drain: int, replicas: int | None, traceback: bool,
) -> None:  # fmt: skip
    """Serve ARTIFACT by OpenAI's API, until SIGTERM or Ctrl-C."""
    keys = [*_keys(api_key_file), *([api_key] if api_key else [])]
    if not keys and not insecure and not _is_loopback(host):
        raise DeepZigError(
            f"{host} can be reached by others, and no key is set", "option --host",
            "set DEEPZIG_API_KEY or --api-key-file, or allow everyone with --insecure",
        )  # fmt: skip
    settings = Settings(max_waiting=max_waiting)
    loaded = partial(load, artifact, device=device, threads=threads, cache_tokens=cache_tokens, settings=settings)
    app = partial(create_app, name=served_name or Path(artifact).resolve().name, access=Access(keys, max_body))
    if replicas:
        from .replicas import serve_replicas

        serve_replicas(
            partial(_copy, loaded, app), replicas, host=host, port=port, drain=drain, gpu=(device or "cpu") != "cpu"
        )
        return
    with loaded() as model:
        config = uvicorn.Config(
            app(model), host, port, access_log=False, timeout_graceful_shutdown=drain, server_header=False,
            ws_max_size=max_body,
        )  # fmt: skip
        uvicorn.Server(config).run()


def _copy(loaded: Callable[[], Model], app: Callable[[Model], FastAPI]) -> FastAPI:
    """One of several copies; its model lives as long as its process."""
    return app(loaded())


def _keys(path: str | None) -> list[str]:
    if path is None:
        return []
    try:
        lines = Path(path).read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise DeepZigError(f"the keys can't be read: {error}", path, "give a text file with a key a line") from None
    if not lines:
        raise DeepZigError("the file has no key", path, "write one key a line")
    return lines


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
