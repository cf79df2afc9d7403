"""Metrics, logs and traces."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator

import httpx
import pytest
from openai import OpenAI
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.parser import text_string_to_metric_families

from deepzig import log
from deepzig.runtime import Model
from deepzig.server import Access
from deepzig.server.access import HEALTH, METRICS
from deepzig.server.exchange import Exchange
from deepzig.server.keys import Keyring
from deepzig.server.logs import FIELDS, JSON, PLAIN, Lines, configure, observer
from deepzig.server.tracing import spans

from .conftest import KEY, NAME, key_of, serving

AUTH = {"Authorization": f"Bearer {KEY}"}
SECRET = "Nobody shall read this."


def ask(url: str, **options: object) -> httpx.Response:
    body = {"model": NAME, "prompt": SECRET, "max_tokens": 7, "ignore_eos": True, **options}
    return httpx.post(f"{url}/v1/completions", json=body, headers=AUTH, timeout=30)


def figures(text: str) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_metrics(model: Model) -> None:
    with serving({NAME: model}, Access(Keyring([key_of(KEY)]))) as url:
        before = figures(httpx.get(f"{url}{METRICS}", headers=AUTH).text)
        answers = [ask(url, n=2), ask(url, stream=True), ask(url, temperature=9)]
        httpx.get(f"{url}/any{METRICS}", headers=AUTH)
        assert httpx.get(f"{url}{METRICS}").status_code == 401
        text = httpx.get(f"{url}{METRICS}", headers=AUTH)
    assert [answer.status_code for answer in answers] == [200, 200, 400]
    assert text.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    told = figures(text.text)
    assert told["deepzig_requests_total", "/v1/completions", "200"] == 2
    assert told["deepzig_requests_total", "/v1/completions", "400"] == 1
    assert told["deepzig_requests_total", "other", "404"] == 1  # clients name no label
    assert told["deepzig_requests_total", METRICS, "401"] == 1
    made = told["deepzig_generated_tokens_total", NAME] - before["deepzig_generated_tokens_total", NAME]
    assert made == 7 * 3
    prompt = told["deepzig_prompt_tokens_total", NAME] - before["deepzig_prompt_tokens_total", NAME]
    assert prompt == 2 * answers[0].json()["usage"]["prompt_tokens"]
    assert told["deepzig_first_token_seconds_count", NAME] == told["deepzig_token_seconds_count", NAME] == 2
    assert 0 < told["deepzig_token_seconds_sum", NAME] < told["deepzig_request_seconds_sum", "/v1/completions"]
    assert told["deepzig_pages", NAME] == model.pool.count
    assert told["deepzig_running_answers", NAME] == 0
    assert {"deepzig_prefix_hit_tokens_total", "deepzig_accepted_tokens_total", "deepzig_waiting_answers"} <= {
        name for name, *_ in told
    }


def test_metrics_for_everyone(model: Model) -> None:
    access = Access(Keyring([key_of(KEY)]), public=frozenset({HEALTH, METRICS}))
    with serving({NAME: model}, access) as url:
        assert httpx.get(f"{url}{METRICS}").status_code == 200


@pytest.mark.parametrize("prompts", [False, True])
@pytest.mark.parametrize("style", [PLAIN, JSON])
def test_logs(style: str, prompts: bool, model: Model, caplog: pytest.LogCaptureFixture) -> None:
    access = Access(Keyring([key_of(KEY)]))
    caplog.set_level(logging.INFO, "deepzig.server.logs")
    with serving({NAME: model}, access, observers=[observer(access, prompts)]) as url:
        answer = ask(url)
        httpx.get(f"{url}{HEALTH}")
        httpx.get(f"{url}/no%0Awhere status=200", headers={**AUTH, "x-request-id": "mine"})
    lines = [Lines(style).format(record) for record in caplog.records if record.name == "deepzig.server.logs"]
    assert len(lines) == 2 and all("\n" not in line for line in lines)
    assert (SECRET in lines[0]) is prompts
    assert KEY not in lines[0].replace(f"name-of-{KEY}", "")
    if style == JSON:
        told = json.loads(lines[0])
        names = ("level", "message", "id", "method", "path", "status", "key", "model")
        assert {name: told[name] for name in names} == {
            "level": "info", "message": "request", "id": answer.headers["x-request-id"], "method": "POST",
            "path": "/v1/completions", "status": 200, "key": f"name-of-{KEY}", "model": NAME,
        }  # fmt: skip
        assert (told["answer_tokens"], told["address"]) == (7, "127.0.0.1")
        assert told["prompt_tokens"] == answer.json()["usage"]["prompt_tokens"]
        assert 0 < told["first_token"] <= told["seconds"]
        assert json.loads(lines[1])["path"] == "/no\nwhere status=200"
    else:
        assert re.match(r"\d{4}-\d\d-\d\dT[\d:.]+\+00:00 INFO    request id=\w+ method=POST path=/v1/c", lines[0])
        assert 'path="/no\\nwhere status=200" status=404' in lines[1] and "id=mine" in lines[1]


def test_a_line_with_a_traceback() -> None:
    try:
        raise ValueError("broken")
    except ValueError as error:
        record = logging.LogRecord("deepzig.x", logging.ERROR, "", 0, "it %s", ("failed",), (type(error), error, None))
    told = json.loads(Lines(JSON).format(record))
    assert told["message"] == "it failed" and "ValueError: broken" in told["exception"]
    assert "ValueError: broken" in Lines(PLAIN).format(record)
    setattr(record, FIELDS, {"a": 1})
    assert json.loads(Lines(JSON).format(record))["a"] == 1


@pytest.fixture
def loggers() -> Iterator[None]:
    """What a test does to loggers is undone."""
    names = ("deepzig", "uvicorn", "deepzig.server")
    before = [(one, one.level, one.handlers, one.propagate) for one in map(logging.getLogger, names)]
    yield
    for one, level, handlers, propagate in before:
        one.setLevel(level)
        one.handlers, one.propagate = handlers, propagate


@pytest.mark.usefixtures("loggers")
@pytest.mark.parametrize(
    ("named", "shown"), [("", {"info", "error"}), ("error", {"error"}), ("debug", {"debug", "info", "error"})]
)
def test_levels(
    named: str, shown: set[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DEEPZIG_LOG", named)
    log.configure(command=True)
    configure(JSON)
    for name in ("debug", "info", "error"):
        getattr(logging.getLogger("deepzig.server.logs"), name)("told")
        getattr(logging.getLogger("uvicorn.of_a_test"), name)("told")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert {line["level"] for line in lines} == shown and len(lines) == 2 * len(shown)


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    kept, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    yield kept
    provider.shutdown()


def test_traces(model: Model, exporter: InMemorySpanExporter) -> None:
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    with serving({NAME: model}, Access(Keyring([key_of(KEY)])), span=spans()) as url:
        with OpenAI(base_url=f"{url}/v1", api_key=KEY) as client:
            answer = client.completions.create(
                model=NAME, prompt=SECRET, max_tokens=4, extra_headers={"traceparent": parent}
            )
        httpx.get(f"{url}/nowhere")
    asked, refused = exporter.get_finished_spans()
    assert asked.name == "POST /v1/completions" and asked.kind == trace.SpanKind.SERVER
    assert asked.context and f"{asked.context.trace_id:032x}" == parent.split("-")[1]
    assert asked.parent and f"{asked.parent.span_id:016x}" == parent.split("-")[2]
    assert asked.attributes and answer.usage
    assert asked.attributes["http.response.status_code"] == 200
    assert asked.attributes["gen_ai.request.model"] == NAME
    assert asked.attributes["gen_ai.usage.input_tokens"] == answer.usage.prompt_tokens
    assert asked.attributes["gen_ai.usage.output_tokens"] == answer.usage.completion_tokens
    assert SECRET not in asked.to_json()
    assert (refused.name, refused.parent) == ("GET", None)
    assert refused.attributes and refused.attributes["http.response.status_code"] == 401


def test_an_observer_is_told_once_of_each_request(model: Model) -> None:
    told: list[Exchange] = []
    with serving({NAME: model}, Access(), observers=[told.append]) as url:
        ask(url, n=2, stream=True)
        ask(url, prompt=["a", "b"])
    assert [(one.status, one.model, one.answer_tokens) for one in told] == [(200, NAME, 14)] * 2
    assert all(one.first_token and one.per_token and one.per_token < one.seconds for one in told)
