"""The command `deepzig serve`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import click
from fastapi import FastAPI

from deepzig.errors import DeepZigError
from deepzig.runtime import Settings, load

from . import logs, tracing
from .access import HEALTH, METRICS, PAGE, Access
from .addresses import is_loopback, parse_networks
from .app import create_app
from .health import LOADING, Health
from .keys import Key, Keyring, Limits, hashed
from .ledgers import Ledgers
from .limits import RequestLimits
from .listen import Server, log
from .protocol import Config, ConnectionLimits
from .quotas import Quotas
from .served import Catalogue

EXAMPLES = """
\b
Examples:
  deepzig serve artifacts/built/demo
  DEEPZIG_API_KEY=secret deepzig serve artifacts/built/demo --host 0.0.0.0
  deepzig serve artifacts/built/one artifacts/built/other --api-keys keys.json
  curl http://127.0.0.1:8080/v1/models
"""

AT_LEAST_1 = click.IntRange(1)
SECONDS = click.FloatRange(0, min_open=True)

OPTIONS = (
    click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on."),
    click.option(
        "--port", default=8080, show_default=True, type=click.IntRange(0, 65535), help="Port; 0 for a free one."
    ),
    click.option(
        "--served-name", multiple=True, help="What clients call a model, once for each; by default the artifact's name."
    ),
    # who may ask
    click.option("--api-key", help="A key that clients must send; better set by the environment."),
    click.option("--api-keys", type=click.Path(path_type=Path), help="A file of keys, made by `deepzig keys`."),
    click.option("--insecure", is_flag=True, help="Listen on any address without a key."),
    click.option("--cors-origin", multiple=True, help="Origin of web pages that may ask; may be repeated."),
    click.option("--trusted-proxy", multiple=True, help="Network whose X-Forwarded-For is believed; may be repeated."),
    click.option("--public-metrics", is_flag=True, help="Let everyone read /metrics."),
    # how much
    click.option("--address-requests", type=AT_LEAST_1, help="Requests a minute from an address."),
    click.option("--address-tokens", type=AT_LEAST_1, help="Tokens a minute for an address."),
    click.option("--max-prompt-tokens", type=AT_LEAST_1, help="Tokens of a prompt."),
    click.option("--max-answer-tokens", type=AT_LEAST_1, help="Tokens of an answer."),
    click.option(
        "--max-answers", default=128, show_default=True, type=AT_LEAST_1, help="Answers to the prompts of a request."
    ),
    click.option("--max-body", default=4 << 20, show_default=True, type=AT_LEAST_1, help="Bytes of a request."),
    click.option("--max-connections", default=1000, show_default=True, type=AT_LEAST_1, help="Connections at a time."),
    click.option("--max-waiting", default=256, show_default=True, type=AT_LEAST_1, help="Requests that may wait."),
    click.option(
        "--request-timeout", default=600.0, show_default=True, type=SECONDS, help="Seconds to answer a request in."
    ),
    click.option(
        "--drain", default=60, show_default=True, type=click.IntRange(0), help="Seconds for answers to end in."
    ),
    # where it runs
    click.option("--device", help="Where it runs: cpu, cuda, cuda:1 or metal; by default where it can."),
    click.option("--threads", type=AT_LEAST_1, help="Threads of the kernels; by default all processors."),
    click.option("--replicas", type=AT_LEAST_1, help="Copies, each a process of its own, by Ray (extra [ray])."),
    click.option("--gpus", default=0, show_default=True, type=click.IntRange(0), help="GPUs that each copy takes."),
    click.option("--cache-tokens", type=AT_LEAST_1, help="Tokens that the cache of each model holds."),
    # what is told
    click.option("--log-format", default=logs.PLAIN, show_default=True, type=click.Choice([logs.PLAIN, logs.JSON])),
    click.option("--log-prompts", is_flag=True, help="Log what clients send, too."),
    click.option("--otel", is_flag=True, help="Send traces by OTLP; the variables OTEL_* say where to."),
    click.option("--traceback", is_flag=True, help="Show where an error comes from."),
)


def _with_options(command: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(OPTIONS):
        command = option(command)
    return command


@click.command(epilog=EXAMPLES, context_settings={"auto_envvar_prefix": "DEEPZIG"})
@click.argument("artifacts", metavar="ARTIFACT...", nargs=-1, required=True, type=click.Path(path_type=Path))
@_with_options
def serve(artifacts: tuple[Path, ...], **options: Any) -> None:
    """Serve each ARTIFACT by OpenAI's API, until SIGTERM or Ctrl-C."""
    names = _names(artifacts, options["served_name"])
    access = _access(options)
    if not access.keys.required and not options["insecure"] and not is_loopback(options["host"]):
        raise DeepZigError(
            f"{options['host']} can be reached by others, and no key is set", "option --host",
            "set DEEPZIG_API_KEY or --api-keys, or allow everyone with --insecure",
        )  # fmt: skip
    if options["otel"]:
        tracing.check()
    if options["replicas"]:
        from .replicas import serve_replicas

        given = {name: options[name] for name in ("host", "port", "drain", "gpus")}
        serve_replicas(partial(_copy, names, options), options["replicas"], **given)
        return
    catalogue, health = Catalogue(), Health(LOADING)
    app = _app(catalogue, access, health, options)
    limits = ConnectionLimits(options["max_connections"])
    config = Config(
        app, limits, host=options["host"], port=options["port"], log_config=None, ws_max_size=options["max_body"],
        timeout_graceful_shutdown=1,  # what had time to end while it drained is cancelled
    )  # fmt: skip
    with ExitStack() as stack:
        load_all = partial(_load, names, options, catalogue, stack)
        Server(config, access, health, load_all, options["drain"]).serve_until_told()


def _app(catalogue: Catalogue, access: Access, health: Health, options: Mapping[str, Any]) -> FastAPI:
    """The application, telling of itself in this process."""
    logs.configure(options["log_format"])
    if options["otel"]:
        tracing.export()
    return create_app(
        catalogue, access, health, observers=[logs.observer(access, options["log_prompts"])],
        span=tracing.spans() if options["otel"] else None, origins=options["cors_origin"],
    )  # fmt: skip


def _load(names: Mapping[str, Path], options: Mapping[str, Any], catalogue: Catalogue, stack: ExitStack) -> None:
    """Load the artifacts, one after another; the end of the stack closes them."""
    for name, path in names.items():
        begin = time.perf_counter()
        model = load(
            path, device=options["device"], threads=options["threads"], cache_tokens=options["cache_tokens"],
            settings=Settings(max_waiting=options["max_waiting"]),
        )  # fmt: skip
        catalogue.add(name, stack.enter_context(model))
        log.info("serving %s, loaded in %.1f s", name, time.perf_counter() - begin)


def _copy(names: Mapping[str, Path], options: Mapping[str, Any]) -> FastAPI:
    """One of several copies; its models live as long as its process."""
    catalogue = Catalogue()
    _load(names, options, catalogue, ExitStack())
    return _app(catalogue, _access(options), Health(), options)


def _names(artifacts: tuple[Path, ...], given: tuple[str, ...]) -> Mapping[str, Path]:
    """What clients call each artifact."""
    if given and len(given) != len(artifacts):
        what = f"{len(artifacts)} artifacts have {len(given)} names"
        raise DeepZigError(what, "option --served-name", "give it once for each artifact, or not at all")
    names = list(given) or [path.resolve().name for path in artifacts]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise DeepZigError(f"two artifacts are called {twice}", "option --served-name", "give each its own name")
    return dict(zip(names, artifacts, strict=True))


def _access(options: Mapping[str, Any]) -> Access:
    path: Path | None = options["api_keys"]
    fixed = [Key(name="environment", sha256=hashed(options["api_key"]))] if options["api_key"] else []
    keys = Keyring(fixed, path)
    quotas = Quotas(path.with_name(f"{path.name}.spent")) if path else None
    return Access(
        keys=keys,
        address=Limits(
            requests_per_minute=options["address_requests"], tokens_per_minute=options["address_tokens"]
        ),
        proxies=parse_networks(options["trusted_proxy"]),
        request=RequestLimits(
            body=options["max_body"], seconds=options["request_timeout"], prompt_tokens=options["max_prompt_tokens"],
            answer_tokens=options["max_answer_tokens"], answers=options["max_answers"],
        ),
        ledgers=Ledgers(quotas),
        public=frozenset({PAGE, HEALTH, *([METRICS] if options["public_metrics"] else [])}),
    )  # fmt: skip
