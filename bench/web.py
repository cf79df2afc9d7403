"""WebAssembly in node against native code on one thread: the reference model, in turns.

    python bench/web.py --rounds 5

Each is called from its own language. The least time of many calls is that without the neighbours of a shared machine;
rounds take turns, and ratios are medians of the ratios of rounds.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np

from deepzig.compiler.driver import compile_model
from deepzig.compiler.options import Options
from deepzig.runtime import Model, load, machine
from deepzig.web import SERVE

REFERENCE = Path(__file__).parents[1] / "models" / "reference"
WORKER = Path(__file__).with_suffix("").with_name("web_worker.js")
FORMATS: dict[str, dict[str, Any]] = {"f32": {"dtype": "f32"}, "q8": {"quant": "q8"}, "q4": {"quant": "q4"}}
DEPTHS = (32, 255, 900)
CALLS, TOKENS = 600, 200
PROMPT = [0, 3, 333, 457, 225, 21, 22, 480, 225, 23, 20, 35, 4]


class Node:
    """The artifact for WebAssembly in node."""

    def __init__(self, artifact: Path) -> None:
        library = (SERVE.parent / "node.js").as_uri()
        command = ["node", str(WORKER), str(artifact), library]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, what: str, **request: Any) -> float:
        """What the worker measures, in seconds."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        stdin.write(json.dumps({"do": what, **request}) + "\n")
        stdin.flush()
        seconds: float = json.loads(stdout.readline())
        return seconds

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()


def step(model: Model, depth: int) -> float:
    """The least seconds of a decode call with one row at a depth of the cache."""
    rows = {
        "tokens": np.array([5], np.int32), "seq": np.zeros(1, np.int32), "pos": np.array([depth], np.int32),
        "block_table": np.arange(model.pool.count, dtype=np.int32)[None], "out_rows": np.zeros(1, np.int32),
    }  # fmt: skip
    best = float("inf")
    for _ in range(CALLS):
        begin = time.perf_counter()
        model.backend.call("decode", rows)
        best = min(best, time.perf_counter() - begin)
    return best


def answer(model: Model) -> float:
    """The seconds that an answer takes, prompt included."""
    begin = time.perf_counter()
    model.generate(PROMPT, max_tokens=TOKENS, ignore_eos=True)
    return time.perf_counter() - begin


@click.command()
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Turns; medians are shown.")
def main(rounds: int) -> None:
    """Measure decode steps and answers of the reference model, native and in node."""
    click.echo(f"{machine.cpu_name()}, one thread, {rounds} rounds")
    with tempfile.TemporaryDirectory() as folder:
        for name, options in FORMATS.items():
            native, web = Path(folder) / f"{name}-native", Path(folder) / f"{name}-web"
            for target, out in (("x86-64-v3", native), ("wasm", web)):
                compile_model(REFERENCE, out, Options(target=target, self_check="none", **options))
            measure(name, native, web, rounds)


def measure(name: str, native: Path, web: Path, rounds: int) -> None:
    """Print the rows of one format."""
    samples: dict[str, list[tuple[float, float, float]]] = {}
    node = Node(web)
    try:
        with load(native, threads=1) as model, load(web) as served:
            for _ in range(rounds + 1):
                for depth in DEPTHS:
                    row = step(model, depth), node.ask("step", depth=depth, count=CALLS), step(served, depth)
                    samples.setdefault(f"step at depth {depth}", []).append(row)
                row = answer(model), node.ask("answer", prompt=PROMPT, tokens=TOKENS), answer(served)
                samples.setdefault(f"answer of {TOKENS} tokens", []).append(row)
    finally:
        node.close()
    for what, times in samples.items():
        kept = times[1:]  # in the first round node compiles
        mine, theirs, through = (1e3 * statistics.median(column) for column in zip(*kept, strict=True))
        ratio, served_ratio = (statistics.median(t[0] / t[i] for t in kept) for i in (1, 2))
        click.echo(
            f"{name:4} {what:24} native {mine:8.3f} ms, node {theirs:8.3f} ms, ratio {ratio:.2f}; "
            f"from Python {through:8.3f} ms, ratio {served_ratio:.2f}"
        )


if __name__ == "__main__":
    main()
