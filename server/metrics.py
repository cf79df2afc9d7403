"""Figures for Prometheus (https://prometheus.io/docs/instrumenting/exposition_formats)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from deepzig.runtime.engine import Stats

from .exchange import Exchange
from .health import Health
from .served import Catalogue

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
OTHER = "other"
"""The path of requests that no path of ours answers: clients shall not name what is kept."""

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)

GAUGES: dict[str, tuple[str, Callable[[Stats], float]]] = {
    "running_answers": ("Answers that are made.", lambda stats: stats.running),
    "waiting_answers": ("Answers that wait.", lambda stats: stats.waiting),
    "pages": ("Pages of the cache.", lambda stats: stats.pages),
    "pages_used": ("Pages that are in use.", lambda stats: stats.pages - stats.pages_free),
    "pages_kept": ("Pages that are kept for prompts that begin alike.", lambda stats: stats.pages_kept),
}  # fmt: skip
COUNTERS: dict[str, tuple[str, Callable[[Stats], float]]] = {
    "prompt_tokens": ("Tokens of prompts that were read.", lambda stats: stats.prompt_tokens),
    "prefix_hit_tokens": ("Tokens of prompts that were found read.", lambda stats: stats.cached_tokens),
    "generated_tokens": ("Tokens that were made.", lambda stats: stats.generated_tokens),
    "guessed_tokens": ("Tokens that were guessed ahead.", lambda stats: stats.guessed_tokens),
    "accepted_tokens": ("Guesses that were right.", lambda stats: stats.accepted_tokens),
    "preemptions": ("How often an answer lost its pages.", lambda stats: stats.preemptions),
    "steps": ("Steps of the engine.", lambda stats: stats.steps),
}
"""Name -> what it is, and where an engine tells it."""


class Engines(Collector):
    """The figures of the engines, read when they are asked for."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue

    def collect(self) -> Iterator[Metric]:
        """Figures of all models."""
        stats = {served.name: served.model.engine.stats() for served in self._catalogue}
        for kind, table in ((GaugeMetricFamily, GAUGES), (CounterMetricFamily, COUNTERS)):
            for name, (what, value) in table.items():
                family = kind(f"deepzig_{name}", what, labels=["model"])
                for model, one in stats.items():
                    family.add_metric([model], value(one))
                yield family


class Metrics:
    """Counts requests.

    Args:
        catalogue: the models.
        health: where the server stands.
        paths: that are told apart.
    """

    def __init__(self, catalogue: Catalogue, health: Health, paths: Collection[str]) -> None:
        self._paths = frozenset(paths)
        self._registry = CollectorRegistry()
        self._registry.register(Engines(catalogue))
        self._requests = Counter(
            "deepzig_requests", "Requests that are over.", ["path", "status"], registry=self._registry
        )
        labels = ["model"]
        self._seconds = Histogram(
            "deepzig_request_seconds", "How long requests took.", ["path"], buckets=SECONDS, registry=self._registry
        )
        self._first = Histogram(
            "deepzig_first_token_seconds", "From a request to its first token.", labels, buckets=SECONDS,
            registry=self._registry,
        )  # fmt: skip
        self._token = Histogram(
            "deepzig_token_seconds", "From one token to the next, as a request's average.", labels,
            buckets=TOKEN_SECONDS, registry=self._registry,
        )  # fmt: skip
        under_way = Gauge("deepzig_requests_under_way", "Requests that are being answered.", registry=self._registry)
        under_way.set_function(lambda: health.under_way)

    def observe(self, exchange: Exchange) -> None:
        """Count a request that is over."""
        path = exchange.route or (exchange.path if exchange.path in self._paths else OTHER)
        self._requests.labels(path, str(exchange.status)).inc()
        self._seconds.labels(path).observe(exchange.seconds)
        if exchange.model and exchange.first_token is not None:
            self._first.labels(exchange.model).observe(exchange.first_token)
            if exchange.per_token is not None:
                self._token.labels(exchange.model).observe(exchange.per_token)

    def text(self) -> bytes:
        """All figures."""
        return generate_latest(self._registry)
