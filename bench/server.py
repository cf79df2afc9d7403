"""The server: what it takes of the engine's speed, and how it bears clients that come and go.

    python bench/server.py ARTIFACT                            # both cases
    python bench/server.py ARTIFACT --only cost --streams 16
    python bench/server.py ARTIFACT --only soak --seconds 60 --json soak.json

Model and server are in this process, as in `deepzig serve`; clients are in another. Rounds of the engine alone and
through the server take turns. docs/performance.md has tables.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import psutil  # type: ignore[import-untyped]
import uvicorn
from engine_cases import SAMPLED, Row, show, told
from server_clients import PROMPT_TOKENS, Load

from deepzig.runtime import Model, Settings, load
from deepzig.server import Catalogue, create_app
from deepzig.server.protocol import Config, ConnectionLimits

CLIENTS = Path(__file__).with_name("server_clients.py")
TOKENS = 96
NAME = "bench"


@dataclass
class Serving:
    """A server in a thread.

    Attributes:
        model: what answers.
        loop: its event loop.
        thread: where it runs.
        host: of its address.
        port: of its address.
        clients: the process that asks it.
        random: draws prompts.
    """

    model: Model
    loop: asyncio.AbstractEventLoop
    thread: threading.Thread
    host: str
    port: int
    clients: subprocess.Popen[str]
    random: np.random.Generator

    @property
    def vocabulary(self) -> int:
        """Of the model."""
        return int(self.model.manifest.model["vocab_size"])

    def ask(self, **options: Any) -> dict[str, Any]:
        """Have the clients send a load, and wait for what comes of it."""
        wanted = Load(self.host, self.port, NAME, self.vocabulary, **options)
        assert self.clients.stdin and self.clients.stdout
        print(json.dumps(wanted._asdict()), file=self.clients.stdin, flush=True)
        return json.loads(self.clients.stdout.readline())

    def cpu(self) -> float:
        """Seconds of CPU that the server's thread has taken."""
        assert self.thread.ident
        return time.clock_gettime(time.pthread_getcpuclockid(self.thread.ident))

    def tasks(self) -> int:
        """Tasks of the event loop."""
        return len(asyncio.all_tasks(self.loop))


@contextmanager
def serving(model: Model) -> Iterator[Serving]:
    """Serve a model, and have clients ready."""
    started, loops = threading.Event(), list[asyncio.AbstractEventLoop]()

    class Server(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            loops.append(asyncio.get_running_loop())
            started.set()

    config = Config(create_app(Catalogue({NAME: model})), ConnectionLimits(), port=0, log_level="warning")
    server = Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    command = [sys.executable, str(CLIENTS)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as clients:
        try:
            started.wait()
            host, port = server.servers[0].sockets[0].getsockname()[:2]
            yield Serving(model, loops[0], thread, host, port, clients, np.random.default_rng(1))
        finally:
            server.should_exit = True
            thread.join()
            assert clients.stdin
            clients.stdin.close()


def alone(server: Serving, streams: int) -> float:
    """Tokens a second of the engine without a server; each stream is read by a thread."""
    prompts = server.random.integers(2, server.vocabulary, (streams, PROMPT_TOKENS)).tolist()
    begin = time.perf_counter()
    asked = [server.model.submit(prompt, max_tokens=TOKENS, **SAMPLED) for prompt in prompts]
    for one in asked:
        one.wait()
    return streams * TOKENS / (time.perf_counter() - begin)


def cost(server: Serving, streams: int, rounds: int) -> Iterator[Row]:
    """Tokens a second through the server, over those of the engine alone; and CPU, which hangs less on neighbours."""
    alone(server, streams)
    server.ask(streams=streams, tokens=TOKENS, rounds=1)  # everything is warm by now
    bare, served, cpu, shares = list[float](), list[float](), list[float](), list[float]()
    for turn in range(rounds):
        bare.append(alone(server, streams))
        before, process = server.cpu(), time.process_time()
        answer = server.ask(streams=streams, tokens=TOKENS, rounds=1, seed=turn)
        assert answer["statuses"] == {"200": streams}, answer
        served.append(answer["tokens"] / answer["seconds"])
        cpu.append((server.cpu() - before) / answer["tokens"])
        shares.append((server.cpu() - before) / (time.process_time() - process))
    ratios = [b / a for a, b in zip(bare, served, strict=True)]
    yield {
        "case": f"cost, {streams} streams", "engine tokens/s": statistics.median(bare),
        "server tokens/s": statistics.median(served), "server costs %": 100 * (1 - statistics.median(ratios)),
        "CPU us a token": 1e6 * statistics.median(cpu), "of all CPU %": 100 * statistics.median(shares),
    }  # fmt: skip


def soak(server: Serving, clients: int, seconds: float) -> Iterator[Row]:
    """Many clients, a tenth of which leaves at random; what is left behind."""
    model, process = server.model, psutil.Process()
    server.ask(streams=clients, tokens=4, rounds=1)
    tasks, sizes, done = server.tasks(), list[float](), threading.Event()

    def watch() -> None:
        while not done.wait(0.25):
            sizes.append(process.memory_info().rss / 1e6)

    watcher = threading.Thread(target=watch)
    watcher.start()
    answer = server.ask(streams=clients, tokens=64, seconds=seconds, leaving=0.1)
    until = time.monotonic() + 10
    while (left := model.engine.stats()).running + left.waiting and time.monotonic() < until:
        time.sleep(0.05)
    done.set()
    watcher.join()
    stats = model.engine.stats()
    half = np.array(sizes[len(sizes) // 2 :])
    yield {
        "case": f"soak, {clients} clients, {seconds:.0f} s",
        **{f"status {status}" if status != "0" else "left": n for status, n in sorted(answer["statuses"].items())},
        "without Retry-After": answer["without Retry-After"], "tokens/s": answer["tokens"] / answer["seconds"],
        "answers left over": stats.running + stats.waiting, "pages lost": stats.pages - stats.pages_free,
        "tasks lost": server.tasks() - tasks, "MB": float(half.mean()),
        "MB more a minute": float(np.polyfit(np.linspace(0, seconds / 120, len(half)), half, 1)[0]),
    }  # fmt: skip


@click.command(help=__doc__)
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--only", multiple=True, type=click.Choice(["cost", "soak"]), help="This case; may be repeated.")
@click.option("--streams", default=16, show_default=True, type=click.IntRange(1), help="Streams of the case `cost`.")
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1), help="Turns of the case `cost`.")
@click.option("--clients", default=200, show_default=True, type=click.IntRange(1), help="Clients of the case `soak`.")
@click.option("--seconds", default=60.0, show_default=True, type=click.FloatRange(1), help="Of the case `soak`.")
@click.option("--max-waiting", default=128, show_default=True, type=click.IntRange(1), help="Requests that may wait.")
@click.option("--threads", default=2, show_default=True, type=click.IntRange(1), help="Threads of the kernels.")
@click.option("--cache-tokens", default=16384, show_default=True, type=click.IntRange(1), help="Tokens of the cache.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the rows to this file.")
def main(
    artifact: Path, only: tuple[str, ...], streams: int, rounds: int, clients: int, seconds: float, max_waiting: int,
    threads: int, cache_tokens: int, json_path: Path | None,
) -> None:  # fmt: skip
    """Measure the server of an artifact."""
    settings = Settings(max_waiting=max_waiting)
    rows: list[Row] = []
    with (
        load(artifact, threads=threads, cache_tokens=cache_tokens, settings=settings) as model,
        serving(model) as server,
    ):
        cases: dict[str, Callable[[], Iterator[Row]]] = {
            "cost": lambda: cost(server, streams, rounds), "soak": lambda: soak(server, clients, seconds),
        }  # fmt: skip
        for name in only or cases:
            for row in cases[name]():
                show(row)
                rows.append(row)
    if json_path:
        json_path.write_text(told(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
