"""What is measured of the engine: each case asks a loaded model for something and gives a row of figures."""

from __future__ import annotations

import json
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import click
import numpy as np
import psutil  # type: ignore[import-untyped]

from deepzig.models.reference.corpus import heldout
from deepzig.runtime import Model
from deepzig.runtime.engine import Generation
from deepzig.runtime.vm import VirtualMachine

Row = dict[str, float | int | str]
SAMPLED: dict[str, Any] = {"temperature": 0.8, "top_p": 0.95, "ignore_eos": True}
SHARED, SUFFIX = 4096, 32
STRUCTURES: dict[str, Any] = {
    "JSON schema": {
        "json": {
            "type": "array",
            "minItems": 40,
            "items": {
                "type": "object",
                "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
                "required": ["name", "age"],
            },
        }
    },
    "counted letters": {"regex": "[a-z ]{1000}"},  # every token has a mask of its own
}


@dataclass
class Traffic:
    """Random requests on a model."""

    model: Model
    random: np.random.Generator

    def prompt(self, tokens: int) -> list[int]:
        """Any tokens."""
        vocab = int(self.model.manifest.model["vocab_size"])
        return self.random.integers(2, vocab, tokens).tolist()

    def fits(self, tokens: int) -> bool:
        """Whether the context has as many."""
        return tokens <= self.model.context


@contextmanager
def watched(model: Model) -> Iterator[list[tuple[str, float, float]]]:
    """Entry points that are called within, each with the seconds when its code began and ended."""
    machine = model.backend
    assert isinstance(machine, VirtualMachine)
    functions, events = machine._functions, list[tuple[str, float, float]]()

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            begin = time.perf_counter()
            result = function(*arguments)
            events.append((name, begin, time.perf_counter()))
            return result

        return call

    machine._functions = {name: (timed(name, f), fixed) for name, (f, fixed) in functions.items()}
    try:
        yield events
    finally:
        machine._functions = functions


def overhead(traffic: Traffic) -> Iterator[Row]:
    """Of a step that decodes, the share that is not the artifact's code."""
    for batch in (1, 16):
        if batch > traffic.model.manifest.bounds.batch:
            continue
        with watched(traffic.model) as events:
            asked = [traffic.model.submit(traffic.prompt(32), max_tokens=96, **SAMPLED) for _ in range(batch)]
            for one in asked:
                one.wait()
        # steps in which all answers are under way: from one call of decode to the next
        starts = [i for i, (name, _, _) in enumerate(events) if name == "decode"][batch + 8 : -8]
        shares, seconds = [], []
        for a, b in pairwise(starts):
            whole = events[b][1] - events[a][1]
            seconds.append(whole)
            shares.append(1 - sum(end - begin for _, begin, end in events[a:b]) / whole)
        yield {
            "case": f"overhead, batch {batch}", "step ms": 1e3 * statistics.median(seconds),
            "not kernels %": 100 * statistics.median(shares),
        }  # fmt: skip


def first_token(generation: Generation) -> float:
    """Seconds until the first piece comes."""
    begin = time.perf_counter()
    with generation:
        next(iter(generation))
        return time.perf_counter() - begin


def prefix(traffic: Traffic) -> Iterator[Row]:
    """Time to the first token with a long prefix that others had, and without."""
    if not traffic.fits(SHARED + SUFFIX + 1):
        return
    cold, warm = list[float](), list[float]()
    for _ in range(3):
        shared = traffic.prompt(SHARED)
        for times in (cold, warm, warm):
            times.append(first_token(traffic.model.submit([*shared, *traffic.prompt(SUFFIX)], max_tokens=1)))
    first, later = statistics.median(cold), statistics.median(warm)
    yield {"case": f"prefix of {SHARED}", "cold ms": 1e3 * first, "warm ms": 1e3 * later, "ratio": first / later}


def speculation(traffic: Traffic) -> Iterator[Row]:
    """Steps and seconds for the same answers, with tokens guessed ahead; alone and eight at once."""
    if not traffic.model.tokenizer.present:
        return
    questions = [[{"role": "user", "content": question.question}] for question in heldout(None, 48)]
    for batch in (1, 8):
        base: tuple[float, float] | None = None
        for ahead in (0, 1, 2, 3):
            before, begin = traffic.model.engine.stats(), time.perf_counter()
            for at in range(0, len(questions), batch):
                asked = [traffic.model.submit(q, max_tokens=96, speculate=ahead) for q in questions[at : at + batch]]
                for one in asked:
                    one.wait()
            seconds = time.perf_counter() - begin
            after = traffic.model.engine.stats()
            steps = after.steps - before.steps
            base = base or (steps, seconds)
            guessed = after.guessed_tokens - before.guessed_tokens
            yield {
                "case": f"speculate {ahead}, batch {batch}", "steps": steps, "fewer steps": base[0] / steps,
                "faster": base[1] / seconds,
                "right %": 100 * (after.accepted_tokens - before.accepted_tokens) / max(guessed, 1),
            }  # fmt: skip


def structured(traffic: Traffic) -> Iterator[Row]:
    """Seconds of a token that a guide allows, against those of any token."""
    if not traffic.model.tokenizer.present:
        return
    for batch in (1, 8):
        seconds: dict[str | None, list[float]] = {None: [], **{name: [] for name in STRUCTURES}}
        for turn in range(7):
            for name, taken in seconds.items():
                structure = {"structured_outputs": STRUCTURES[name]} if name else {}
                begin = time.perf_counter()
                asked = [
                    traffic.model.submit(traffic.prompt(32), max_tokens=48, **SAMPLED, **structure)
                    for _ in range(batch)
                ]
                tokens = sum(len(one.result().token_ids) for one in asked)
                if turn:  # the first compiles the grammar
                    taken.append((time.perf_counter() - begin) / tokens)
        free, *held = (statistics.median(taken) for taken in seconds.values())
        for name, guided in zip(STRUCTURES, held, strict=True):
            yield {"case": f"{name}, batch {batch}", "free ms": 1e3 * free, "guided ms": 1e3 * guided,
                   "cost %": 100 * (guided / free - 1)}  # fmt: skip


def load(traffic: Traffic, seconds: float = 20.0) -> Iterator[Row]:
    """Throughput and time to the first token while requests arrive at random, at shares of what the model can do."""
    model, tokens = traffic.model, 32

    def ask() -> Generation:
        return model.submit(traffic.prompt(int(traffic.random.integers(8, 96))), max_tokens=tokens, **SAMPLED)

    begin = time.perf_counter()
    for one in [ask() for _ in range(32)]:
        one.wait()
    most = 32 / (time.perf_counter() - begin)
    for share in (0.25, 0.5, 0.75, 1.0, 1.25):
        waits: list[float] = []
        ends: list[float] = []

        def consume(generation: Generation, asked: float, waits: list[float], ends: list[float]) -> None:
            for i, _ in enumerate(generation):
                if i == 0:
                    waits.append(time.perf_counter() - asked)
            ends.append(time.perf_counter())

        begin, threads = time.perf_counter(), list[threading.Thread]()
        while time.perf_counter() - begin < seconds:
            thread = threading.Thread(target=consume, args=(ask(), time.perf_counter(), waits, ends))
            thread.start()
            threads.append(thread)
            time.sleep(float(traffic.random.exponential(1 / (share * most))))
        for thread in threads:
            thread.join()
        yield {
            "case": f"load {share:.2f}", "requests/s offered": share * most,
            "tokens/s": len(ends) * tokens / (max(ends) - begin),
            "first token p50 ms": 1e3 * float(np.median(waits)), "p95 ms": 1e3 * float(np.percentile(waits, 95)),
        }  # fmt: skip


def soak(traffic: Traffic, seconds: float) -> Iterator[Row]:
    """Memory of the process while requests come, end and are cancelled, for long."""
    model, process, sizes = traffic.model, psutil.Process(), list[float]()
    begin, running = time.perf_counter(), list[Generation]()
    served = 0
    while time.perf_counter() - begin < seconds:
        while len(running) < 24:
            count, length = (int(traffic.random.integers(1, most)) for most in (64, 200))
            running.append(model.submit(traffic.prompt(length), max_tokens=count, **SAMPLED))
            served += 1
        one = running.pop(int(traffic.random.integers(len(running))))
        if traffic.random.random() < 0.2:
            one.cancel()
        one.wait()
        sizes.append(process.memory_info().rss / 1e6)
    for one in running:
        one.cancel()
        one.wait()
    half = np.array(sizes[len(sizes) // 2 :])
    growth = float(np.polyfit(np.linspace(0, seconds / 120, len(half)), half, 1)[0])
    yield {"case": f"soak of {seconds:.0f} s", "requests": served, "MB": float(half.mean()), "MB more a minute": growth,
           "pages lost": model.pool.count - model.pool.free}  # fmt: skip


CASES: dict[str, Callable[[Traffic], Iterator[Row]]] = {
    "overhead": overhead, "prefix": prefix, "speculation": speculation, "structured": structured, "load": load,
}  # fmt: skip


def show(row: Row) -> None:
    """A line of the table, as it comes."""
    figures = (f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in row.items())
    click.echo(", ".join(figures).removeprefix("case "))


def told(rows: list[Row]) -> str:
    """The rows as JSON."""
    return json.dumps(rows, indent=1)
