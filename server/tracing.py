"""Traces by OpenTelemetry: a span for each request, in the trace that the client names in `traceparent`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib import import_module

from starlette.datastructures import Headers

from deepzig.errors import DeepZigError

from .exchange import Exchange


def check() -> None:
    """Whether traces can be sent.

    Raises:
        DeepZigError: OpenTelemetry is not installed.
    """
    try:
        import_module("opentelemetry.exporter.otlp.proto.http.trace_exporter")
        import_module("opentelemetry.sdk.trace")
    except ImportError:
        what = "OpenTelemetry is not installed"
        raise DeepZigError(what, "option --otel", "pip install 'deepzig[otel]'") from None


def export() -> None:
    """Have spans sent by OTLP to where the variables OTEL_* say, by default to http://localhost:4318."""
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    resource = Resource({SERVICE_NAME: "deepzig"}).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)


def spans() -> Callable[[Exchange, Headers], AbstractContextManager[None]]:
    """Spans of the tracer that the process has."""
    from opentelemetry import propagate, trace

    tracer = trace.get_tracer("deepzig.server")

    @contextmanager
    def span(exchange: Exchange, headers: Headers) -> Iterator[None]:
        parent = propagate.extract(dict(headers))
        with tracer.start_as_current_span(exchange.method, parent, trace.SpanKind.SERVER) as current:
            try:
                yield
            finally:
                if exchange.route:
                    current.update_name(f"{exchange.method} {exchange.route}")
                for key, value in _attributes(exchange).items():
                    if value is not None:
                        current.set_attribute(key, value)
                if exchange.status >= 500:
                    current.set_status(trace.StatusCode.ERROR)

    return span


def _attributes(exchange: Exchange) -> dict[str, str | int | float | None]:
    """What a span tells, by OpenTelemetry's conventions; nothing of prompts and answers."""
    return {
        "http.request.method": exchange.method, "http.route": exchange.route, "url.path": exchange.path,
        "http.response.status_code": exchange.status, "client.address": exchange.address,
        "gen_ai.request.model": exchange.model, "gen_ai.usage.input_tokens": exchange.prompt_tokens,
        "gen_ai.usage.output_tokens": exchange.answer_tokens,
        "gen_ai.server.time_to_first_token": exchange.first_token, "deepzig.key": exchange.key,
        "deepzig.request_id": exchange.id,
    }  # fmt: skip
