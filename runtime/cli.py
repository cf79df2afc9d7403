"""The commands `deepzig run` and `deepzig chat`."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import click

from .loading import load
from .model import Model
from .prompt import Prompt
from .result import Piece

OPTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("--max-tokens", {"type": click.IntRange(1), "help": "The most tokens to generate."}),
    ("--temperature", {"type": click.FloatRange(0, 2), "help": "0 takes the likeliest token (default)."}),
    ("--top-p", {"type": click.FloatRange(0, 1), "help": "Keep the likeliest tokens up to this probability."}),
    ("--top-k", {"type": click.IntRange(0), "help": "Keep the k likeliest tokens."}),
    ("--min-p", {"type": click.FloatRange(0, 1), "help": "Keep tokens this likely, relative to the likeliest."}),
    ("--seed", {"type": int, "help": "The same seed gives the same answer."}),
    ("--stop", {"multiple": True, "help": "A text that ends the answer; may be repeated."}),
    ("--speculate", {"type": click.IntRange(0, 16), "help": "Guess that many tokens ahead; the answer is the same."}),
    ("--ignore-eos", {"is_flag": True, "default": None, "help": "Don't end at the model's end token."}),
)
"""Options of sampling, named as in `SamplingOptions`."""

DEVICE: tuple[str, dict[str, Any]] = (
    "--device", {"help": "Where it runs: cpu, cuda, cuda:1 or metal; by default where it can."}
)  # fmt: skip
LOADING: tuple[tuple[str, dict[str, Any]], ...] = (
    DEVICE,
    ("--threads", {"type": click.IntRange(1), "help": "Threads of the kernels; by default all processors."}),
    ("--cache-tokens", {"type": click.IntRange(1), "help": "Tokens that the cache holds."}),
    ("--traceback", {"is_flag": True, "help": "Show where an error comes from."}),
)


def _options(table: tuple[tuple[str, dict[str, Any]], ...]) -> Callable[[Any], Any]:
    def apply(function: Any) -> Any:
        for name, settings in reversed(table):
            function = click.option(name, **settings)(function)
        return function

    return apply


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in options.items() if v not in (None, ())}


RUN_EXAMPLES = """
\b
Examples:
  deepzig run artifacts/built/demo "Once upon a time" --max-tokens 64
  echo "Once upon a time" | deepzig run artifacts/built/demo -
  deepzig run artifacts/built/demo "Hello" --json --temperature 0.8 --seed 7
"""

CHAT_EXAMPLES = """
\b
Examples:
  deepzig chat artifacts/built/demo --temperature 0.6
While chatting: /reset forgets the conversation, /exit leaves, Ctrl-C stops an answer.
"""


@click.command(epilog=RUN_EXAMPLES, context_settings={"auto_envvar_prefix": "DEEPZIG"})
@click.argument("artifact", type=click.Path())
@click.argument("prompt")
@_options(OPTIONS)
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
@click.option("--stats", is_flag=True, help="Print speeds to the standard error.")
@_options(LOADING)
def run(
    artifact: str, prompt: str, as_json: bool, stats: bool, device: str | None, threads: int | None,
    cache_tokens: int | None, traceback: bool, **options: Any,
) -> None:  # fmt: skip
    """Continue PROMPT (`-` reads it from the standard input) with ARTIFACT."""
    text = sys.stdin.read() if prompt == "-" else prompt
    start = time.perf_counter()
    with load(artifact, threads=threads, cache_tokens=cache_tokens, device=device) as model:
        watch = _Watch(start)
        if as_json:
            result = model.generate(text, **_given(options))
            answer = {name: value for name, value in asdict(result).items() if name != "choices"}
            click.echo(json.dumps(answer, ensure_ascii=False))
            return
        for piece in watch.each(model.stream(text, **_given(options))):
            click.echo(piece.text, nl=False)
        click.echo()
        if stats:
            click.echo(watch.report(), err=True)


@click.command(epilog=CHAT_EXAMPLES, context_settings={"auto_envvar_prefix": "DEEPZIG"})
@click.argument("artifact", type=click.Path())
@click.option("--system", help="A system message to begin with.")
@_options(OPTIONS)
@_options(LOADING)
def chat(
    artifact: str, system: str | None, device: str | None, threads: int | None, cache_tokens: int | None,
    traceback: bool, **options: Any,
) -> None:  # fmt: skip
    """Talk with ARTIFACT."""
    opening = [{"role": "system", "content": system}] if system else []
    with load(artifact, threads=threads, cache_tokens=cache_tokens, device=device) as model:
        messages = list(opening)
        while True:
            try:
                line = input("> " if sys.stdin.isatty() else "").strip()
            except (EOFError, KeyboardInterrupt):
                return
            if line == "/exit":
                return
            if line == "/reset":
                messages = list(opening)
            elif line:
                messages.append({"role": "user", "content": line})
                messages.append({"role": "assistant", "content": _answer(model, messages, _given(options))})


def _answer(model: Model, prompt: Prompt, options: dict[str, Any]) -> str:
    """Stream an answer to the terminal; Ctrl-C ends it, not the session."""
    parts: list[str] = []
    try:
        for piece in model.stream(prompt, **options):
            click.echo(piece.text, nl=False)
            parts.append(piece.text)
    except KeyboardInterrupt:
        click.echo(" [stopped]", nl=False)
    click.echo()
    return "".join(parts)


class _Watch:
    """Times of a stream of pieces, in seconds since `start`."""

    def __init__(self, start: float) -> None:
        self._start = start
        self._loaded = time.perf_counter()
        self._times: list[float] = []

    def each(self, pieces: Iterator[Piece]) -> Iterator[Piece]:
        for piece in pieces:
            self._times.append(time.perf_counter())
            yield piece

    def report(self) -> str:
        """One line: load, first token, and speed after it."""
        times: Sequence[float] = self._times
        if not times:
            return "no tokens"
        rate = (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else float("nan")
        first = times[0] - self._loaded
        return (
            f"loaded in {self._loaded - self._start:.2f} s, first token after {first:.2f} s, then {rate:.1f} tokens/s"
        )
