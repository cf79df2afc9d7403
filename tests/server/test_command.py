"""`deepzig serve` as a process."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
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


def test_sigterm_lets_answers_end(artifact: Path) -> None:
    command = [sys.executable, "-m", "deepzig", "serve", str(artifact), "--port", "0"]
    env = {**os.environ, "DEEPZIG_API_KEY": "k"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env) as process:
        assert process.stderr
        try:
            address = next(found[0] for line in process.stderr if (found := re.search(r"http://[\d.:]+", line)))
            # long enough for uvicorn, which looks for signals ten times a second, to close its socket meanwhile
            body = {
                "model": artifact.name, "prompt": "Once", "ignore_eos": True, "max_tokens": 900, "n": 4, "stream": True,
            }  # fmt: skip
            headers = {"Authorization": "Bearer k"}
            with httpx.stream("POST", f"{address}/v1/completions", json=body, headers=headers) as answer:
                lines = answer.iter_lines()
                told = [next(lines)]
                process.send_signal(signal.SIGTERM)
                told += [line for line in lines if line]
            assert told[-1] == "data: [DONE]"
            assert json.loads(told[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
            with pytest.raises(httpx.ConnectError):
                httpx.get(f"{address}/health")
            assert process.wait(20) in (0, -signal.SIGTERM)
        finally:
            process.kill()
