"""`deepzig serve` as a process."""

from __future__ import annotations

import json
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from ..runtime.conftest import cli

__all__ = ["cli"]


def test_refuses_to_be_open(cli: Any) -> None:
    code, _, err = cli("serve", "nowhere", "--host", "0.0.0.0")
    assert code == 2
    assert err == (
        "error: 0.0.0.0 can be reached by others, and no key is set\n  at: option --host\n"
        "  fix: set DEEPZIG_API_KEY or --api-keys, or allow everyone with --insecure\n"
    )


@pytest.mark.parametrize(
    ("words", "env"),
    [
        (["--host", "127.0.0.1"], {}),
        (["--host", "localhost"], {}),
        (["--host", "::1"], {}),
        (["--host", "0.0.0.0", "--insecure"], {}),
        (["--host", "0.0.0.0"], {"DEEPZIG_API_KEY": "k"}),
    ],
)
def test_goes_on_to_load(words: list[str], env: dict[str, str], cli: Any, tmp_path: Path) -> None:
    code, _, err = cli("serve", tmp_path / "nowhere", *words, **env)
    assert code == 2 and "nowhere" in err and "reached" not in err


@contextmanager
def running(*words: object, **env: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`deepzig serve` when it serves: the process and its address."""
    command = [sys.executable, "-m", "deepzig", "serve", *map(str, words), "--port", "0"]
    environment = {**os.environ, "DEEPZIG_API_KEY": "k", **env}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr
        try:
            address = next(found[0] for line in process.stderr if (found := re.search(r"http://[\d.:]+", line)))
            assert any("serving" in line for line in process.stderr)
            yield process, address
        finally:
            process.kill()


def test_sigterm_lets_answers_end(artifact: Path) -> None:
    with running(artifact, "--threads", 1) as (process, address):
        body = {
            "model": artifact.name, "prompt": "Once", "ignore_eos": True, "max_tokens": 900, "n": 8, "stream": True,
        }  # fmt: skip
        headers = {"Authorization": "Bearer k"}
        with httpx.stream("POST", f"{address}/v1/completions", json=body, headers=headers, timeout=60) as answer:
            lines = answer.iter_lines()
            told = [next(lines)]
            process.send_signal(signal.SIGTERM)
            while (health := httpx.get(f"{address}/health")).status_code == 200:
                pass
            refused = httpx.post(f"{address}/v1/completions", json=body, headers=headers)
            told += [line for line in lines if line]
        assert (health.status_code, health.json()) == (503, {"status": "draining"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
        assert refused.headers["retry-after"]
        assert told[-1] == "data: [DONE]"
        assert json.loads(told[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
        assert process.wait(20) == 0
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{address}/health")


def test_answers_that_take_too_long_to_end_are_cut_off(artifact: Path) -> None:
    with running(artifact, "--threads", 1, "--drain", 0) as (process, address):
        body = {
            "model": artifact.name, "prompt": "Once", "ignore_eos": True, "max_tokens": 900, "n": 64, "stream": True,
        }  # fmt: skip
        headers = {"Authorization": "Bearer k"}
        with httpx.stream("POST", f"{address}/v1/completions", json=body, headers=headers, timeout=60) as answer:
            lines = answer.iter_lines()
            assert next(lines).startswith("data: ")
            process.send_signal(signal.SIGTERM)
            with pytest.raises(httpx.RemoteProtocolError):
                list(lines)
        assert process.wait(20) == 0


def test_several_artifacts_and_keys_that_come_and_go(artifact: Path, tmp_path: Path, cli: Any) -> None:
    file = tmp_path / "keys.json"
    first = cli("keys", "add", file, "first")[1].strip()
    words = [artifact, artifact, "--served-name", "one", "--served-name", "two", "--api-keys", file, "--threads", 1]
    with running(*words, "--log-format", "json", "--cache-tokens", 2048) as (process, address):

        def models(key: str) -> httpx.Response:
            return httpx.get(f"{address}/v1/models", headers={"Authorization": f"Bearer {key}"})

        while httpx.get(f"{address}/health").status_code == 503:  # until the second is loaded
            time.sleep(0.05)
        assert [one["id"] for one in models(first).json()["data"]] == ["one", "two"]
        body = {"prompt": "What is 12 plus 30?", "temperature": 0}
        answers = [
            httpx.post(f"{address}/v1/completions", json={**body, "model": name}, headers={"Authorization": "Bearer k"})
            for name in ("one", "two", "three")
        ]
        assert [answer.status_code for answer in answers] == [200, 200, 404]
        assert answers[0].json()["choices"] == answers[1].json()["choices"]
        second = cli("keys", "add", file, "second")[1].strip()
        cli("keys", "revoke", file, "first")
        assert (models(first).status_code, models(second).status_code) == (200, 401)
        process.send_signal(signal.SIGHUP)
        while models(second).status_code == 401:
            time.sleep(0.05)
        assert models(first).status_code == 401
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert process.stderr
        lines = [json.loads(line) for line in process.stderr]
    assert {(line.get("model"), line.get("key")) for line in lines if line.get("path") == "/v1/completions"} >= {
        ("one", "environment"), ("two", "environment"),
    }  # fmt: skip


def test_traces_are_sent(artifact: Path) -> None:
    sent: queue.Queue[tuple[str, bytes]] = queue.Queue()

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            sent.put((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Collector) as collector:
        threading.Thread(target=collector.serve_forever, daemon=True).start()
        where = f"http://127.0.0.1:{collector.server_port}"
        sending = {"OTEL_EXPORTER_OTLP_ENDPOINT": where, "OTEL_BSP_SCHEDULE_DELAY": "50"}
        with running(artifact, "--otel", **sending) as (_, address):
            httpx.get(f"{address}/v1/models/{artifact.name}", headers={"Authorization": "Bearer k"})
            path, body = sent.get(timeout=30)
        collector.shutdown()
    assert path == "/v1/traces" and b"GET /v1/models/{name}" in body and b"deepzig.request_id" in body


def test_an_artifact_that_can_not_be_loaded(artifact: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    command = [sys.executable, "-m", "deepzig", "serve", str(artifact), str(broken), "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-2] == f"  at: {broken}"


def test_a_port_that_is_taken(cli: Any, artifact: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "deepzig", "serve", str(artifact), "--port", str(port)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr == (
        f"error: 127.0.0.1:{port} can't be listened on: Address already in use\n  at: options --host and --port\n"
        "  fix: choose others, or end what listens there\n"
    )


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["a/one", "b/one"],
            "error: two artifacts are called one\n  at: option --served-name\n  fix: give each its own name\n",
        ),
        (
            ["a", "b", "--served-name", "c"],
            "error: 2 artifacts have 1 names\n  at: option --served-name\n"
            "  fix: give it once for each artifact, or not at all\n",
        ),
        (
            ["a", "--api-keys", "none.json"],
            "error: the keys can't be read: No such file or directory\n  at: none.json\n"
            "  fix: make one with: deepzig keys add none.json NAME\n",
        ),
        (
            ["a", "--otel"],
            "error: OpenTelemetry is not installed\n  at: option --otel\n  fix: pip install 'deepzig[otel]'\n",
        ),
    ],
)
def test_options_that_do_not_fit(words: list[str], told: str, cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    code, _, err = cli("serve", *words)
    assert (code, err) == (2, told)
