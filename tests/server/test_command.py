"""`deepzig serve` as a process."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
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
    with running(artifact) as (process, address):
        body = {
            "model": artifact.name, "prompt": "Once", "ignore_eos": True, "max_tokens": 900, "n": 4, "stream": True,
        }  # fmt: skip
        headers = {"Authorization": "Bearer k"}
        with httpx.stream("POST", f"{address}/v1/completions", json=body, headers=headers) as answer:
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
