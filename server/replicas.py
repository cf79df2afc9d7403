"""Several copies of a server behind one address, on one machine or many, by Ray Serve (extra `[ray]`).

A copy is a process with the model and all of the application; Ray's proxy hands whole requests to the copies, passes
streams through, and a copy that dies is replaced. Nothing of Ray is between a model and its tokens.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable
from importlib import import_module
from typing import Any

from starlette.types import ASGIApp

from deepzig.errors import DeepZigError

NAME = "deepzig"
AT_ONCE = 4096
"""Requests that a copy is handed at a time: more than its engine lets wait, which tells clients to come back."""

CHECK_SECONDS = 2
"""Between two looks whether a copy is alive."""

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # Ray would report to its makers
    "RAY_worker_niceness": "0",  # it is 15 otherwise, and everything else on the machine comes before a model
}
"""For a Ray that is started here, where nothing else is set."""

SERVE_ENVIRONMENT = {
    # or the proxy hands all requests to copies on its own machine
    "RAY_SERVE_PROXY_PREFER_LOCAL_NODE_ROUTING": "0",
    "RAY_SERVE_PROXY_PREFER_LOCAL_AZ_ROUTING": "0",
    # 5 and 10 seconds otherwise, in which a machine that is busy loading models starts no proxy
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "60",
}
"""For the processes of Ray Serve, on whatever machine."""


class Replica:
    """One copy, in a process that Ray starts.

    Args:
        build: loads the models and gives the application.
    """

    def __init__(self, build: Callable[[], ASGIApp]) -> None:
        self._build = build

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """The application, as Ray Serve asks for it."""
        return self._build()


def serve_replicas(
    build: Callable[[], ASGIApp], count: int, *, host: str, port: int, drain: int, gpus: int = 0
) -> None:  # fmt: skip
    """Serve copies of an application until SIGTERM or Ctrl-C.

    Args:
        build: loads the models and gives the application; is called in each copy, on whatever machine it is.
        count: how many copies.
        host: address to listen on.
        port: likewise.
        drain: seconds in which a copy that is stopped may end its answers.
        gpus: how many each copy takes; others are hidden from it.

    Raises:
        DeepZigError: Ray is not installed, or the copies do not come up.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        ray: Any = import_module("ray")
        serve: Any = import_module("ray.serve")
    except ImportError as error:
        what = f"{error.name or 'ray'} is not installed"
        raise DeepZigError(what, "option --replicas", "pip install 'deepzig[ray]'") from None
    told = threading.Event()
    logs = {"log_level": "WARNING", "enable_access_log": False}
    ray.init(include_dashboard=False, logging_level=logging.WARNING, runtime_env={"env_vars": SERVE_ENVIRONMENT})
    try:
        deployment = serve.deployment(
            serve.ingress()(Replica), num_replicas=count, max_ongoing_requests=AT_ONCE,
            graceful_shutdown_timeout_s=drain, health_check_period_s=CHECK_SECONDS, logging_config=logs,
            ray_actor_options={"num_cpus": 1, "num_gpus": gpus},
        )  # fmt: skip
        try:
            serve.start(proxy_location="HeadOnly", http_options={"host": host, "port": port}, logging_config=logs)
            serve.run(deployment.bind(build), name=NAME, route_prefix="/")
        except (RuntimeError, ray.exceptions.RayError) as error:
            hint = "see what Ray has logged: each copy needs a processor, the artifact at the same path, and memory"
            raise DeepZigError(f"the copies do not come up: {error}", "option --replicas", hint) from error
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: told.set())
        print(f"http://{host}:{port} serves {count} copies", flush=True)
        told.wait()
    finally:
        serve.shutdown()
        ray.shutdown()
