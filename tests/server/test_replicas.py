"""Several copies by Ray Serve, on two nodes of one machine."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from deepzig.runtime import load
from deepzig.server.replicas import ENVIRONMENT

from ..runtime.conftest import cli

__all__ = ["cli"]

ASKED = [{"role": "user", "content": "What is 12 plus 30?"}]
LONG: dict[str, Any] = {"ignore_eos": True, "max_tokens": 200}
"""So that each copy is at work whenever it is killed."""

CLIENTS, EACH = 6, 5


def test_without_ray(cli: Any, artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    code, _, err = cli("serve", artifact, "--replicas", "2")
    assert code == 2
    assert err == (
        "error: ray is not installed\n  at: option --replicas\n  fix: pip install 'deepzig[ray]'\n"
    )


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of two nodes; each has a processor, so each gets a copy."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    nodes.add_node(num_cpus=1)
    yield nodes.address
    nodes.shutdown()


def copies() -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if "ServeReplica:deepzig" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            pass
    return found


def streamed(client: httpx.Client, body: dict[str, Any]) -> str:
    """The text of a whole stream, or an error."""
    text = ""
    with client.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as answer:
        answer.raise_for_status()
        for line in answer.iter_lines():
            if line == "data: [DONE]":
                return text
            if line:
                text += json.loads(line.removeprefix("data: "))["choices"][0]["delta"].get("content") or ""
    raise httpx.RemoteProtocolError("the stream has no end")


@pytest.mark.slow
def test_a_copy_is_killed_under_load(cluster: str, artifact: Path) -> None:
    with load(artifact, threads=1) as model:
        wanted = model.chat(ASKED, **LONG).content
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = {**os.environ, "RAY_ADDRESS": cluster, "DEEPZIG_API_KEY": "k", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    words = ["--replicas", "2", "--threads", "1", "--port", str(port), "--cache-tokens", "4096", "--drain", "5"]
    command = [sys.executable, "-m", "deepzig", "serve", str(artifact), *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as server:
        try:
            assert server.stdout and next(line for line in server.stdout if "serves 2 copies" in line)
            one, other = copies()
            idle = {process: process.cpu_times().user for process in (one, other)}

            def kill() -> None:
                assert all(process.cpu_times().user > before + 0.1 for process, before in idle.items())
                one.kill()

            done, failed = _load(port, artifact.name, wanted, kill)
            assert done == CLIENTS * EACH and failed
            end = time.monotonic() + 60
            while len(now := copies()) < 2 or one in now:
                assert time.monotonic() < end
                time.sleep(0.2)
        finally:
            server.terminate()
            server.wait(60)


def _load(port: int, name: str, wanted: str, kill: Any) -> tuple[int, int]:
    """Ask in many threads, again whenever a request fails, and kill a copy among it.

    Gives how many were answered, and how often one was asked for again.
    """
    body = {"model": name, "messages": ASKED, "temperature": 0, **LONG}
    done, failed = [], []

    def client(number: int) -> None:
        headers = {"Authorization": "Bearer k"}
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=60) as http:
            for at in range(EACH):
                while True:
                    try:
                        if (number + at) % 2:
                            told = streamed(http, body)
                        else:
                            answer = http.post("/v1/chat/completions", json=body).raise_for_status()
                            told = answer.json()["choices"][0]["message"]["content"]
                    except httpx.HTTPError as error:
                        failed.append(error)
                        time.sleep(0.1)
                        continue
                    assert told == wanted
                    done.append(told)
                    break

    threads = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    while len(done) < CLIENTS * EACH // 4:
        time.sleep(0.01)
    kill()
    for thread in threads:
        thread.join()
    return len(done), len(failed)
