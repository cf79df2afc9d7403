"""The command `deepzig bench`."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import click

from deepzig.artifacts.choice import find_gpu
from deepzig.artifacts.devices import HOST, parse_device
from deepzig.artifacts.reader import Artifact, open_artifact
from deepzig.errors import DeepZigError
from deepzig.runtime import first_token, machine
from deepzig.runtime.child import measure
from deepzig.runtime.executor import Executor
from deepzig.runtime.library import default_threads
from deepzig.runtime.loading import load
from deepzig.runtime.model import Model

from .cases import Plan, make_plan
from .plot import check_plot, plot
from .report import report
from .results import Results, Samples, Setting, results
from .runner import Runner
from .trace import Account, Recorder, accounts, chrome_trace, kernel_table

log = logging.getLogger(__name__)

PROFILED_STEPS = 16
"""Steps of a decode on the timeline."""

MEMORY_SHARE = 0.5
"""Of the memory available, how much caches may take."""

EXAMPLES = """
\b
Examples:
  deepzig bench artifacts/built/demo
  deepzig bench artifacts/built/demo --batch 1,8,32 --depth 0,512 --plot demo.png
  deepzig bench artifacts/built/demo --profile profile    (trace.json is for chrome://tracing or Perfetto)
"""


class Numbers(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """Whole numbers from `least`, with commas between them."""

    name = "numbers"

    def __init__(self, least: int) -> None:
        self._least = least

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """The numbers of a text such as 1,4."""
        if isinstance(value, tuple):
            return value
        words = str(value).split(",")
        if not all(word.strip().isdecimal() and int(word) >= self._least for word in words):
            self.fail(f"{value!r} is no list of whole numbers from {self._least}, such as 1,4", param, ctx)
        return tuple(map(int, words))


@click.command(epilog=EXAMPLES, context_settings={"auto_envvar_prefix": "DEEPZIG", "show_default": True})
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--batch", type=Numbers(1), default="1,4", help="Sequences that are decoded together.")
@click.option("--depth", type=Numbers(0), default="0,1024", help="Tokens in the cache when a decode begins.")
@click.option("--prompt", type=Numbers(1), default="512", help="Tokens of a prompt to read.")
@click.option("--tokens", type=click.IntRange(1), default=32, help="Steps of a decode.")
@click.option("--rounds", type=click.IntRange(1), default=3, help="How often all is measured, in turns.")
@click.option("--threads", type=click.IntRange(1), help="Threads of the kernels; by default all processors.")
@click.option("--device", help="Where it runs: cpu, cuda, cuda:1 or metal; by default where it can.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as one JSON object.")
@click.option("--plot", "picture", type=click.Path(path_type=Path), help="Draw the speeds, a PNG file.")
@click.option("--profile", type=click.Path(path_type=Path), help="Write a timeline of kernels to this folder.")
@click.option("--traceback", is_flag=True, help="Show where an error comes from.")
def bench(
    artifact: Path, batch: tuple[int, ...], depth: tuple[int, ...], prompt: tuple[int, ...], tokens: int, rounds: int,
    threads: int | None, device: str | None, as_json: bool, picture: Path | None, profile: Path | None, traceback: bool,
) -> None:  # fmt: skip
    """Measure how fast ARTIFACT is on this machine, and what the machine could do.

    Shown are medians. Cases and the machine's limits take turns: where others use the machine too, read the shares.
    Ctrl-C prints what was measured so far.
    """
    if picture is not None:
        check_plot()
        _folder(picture.absolute().parent, "--plot")
    if profile is not None:
        _folder(profile, "--profile")
    opened = open_artifact(artifact, device=None if device is None else parse_device(device))
    gpu = None if opened.device == HOST else find_gpu(opened.device)
    count = threads or (1 if opened.build.plan else default_threads())
    memory = machine.memory()
    free = memory.available
    if gpu is not None and gpu.memory is not None:
        free = max(gpu.memory - opened.manifest.memory.get("weights_bytes", 0), 0)
    room = None if free is None else int(free * MEMORY_SHARE)
    plan = make_plan(opened.manifest, prompt, batch, depth, tokens, room)
    setting = Setting(
        str(artifact), opened.build.name, count, tokens, machine.cpu_name(), machine.cores(), memory, plan.skipped, gpu
    )
    samples, parts, complete = Samples(), list[Account](), False
    try:
        size = plan.cache_tokens(opened.manifest.bounds.page_size)
        with load(artifact, threads=count, cache_tokens=size, device=str(opened.device)) as model:
            runner = Runner(model, plan)
            stages = rounds * (len(plan.cases) + 2)
            with _bar(runner.fills + stages, hidden=as_json) as step:
                for _ in runner.fill():
                    step()
                _measure(opened, plan, runner, samples, setting, rounds, room, step)
            if profile is not None:
                parts = _profile(opened, model, plan, runner, profile)
        complete = True
    except KeyboardInterrupt:
        if not samples.seconds:
            raise
    found = results(opened.manifest, setting, samples, rounds, complete)
    _tell(found, parts, as_json)
    if picture is not None:
        plot(found, picture)
    if not complete:
        sys.exit(130)


def _measure(
    opened: Artifact, plan: Plan, runner: Runner, samples: Samples, setting: Setting, rounds: int, memory: int | None,
    step: Callable[[], None],
) -> None:  # fmt: skip
    """Take the samples, everything in turns; `memory` bytes are available."""
    for case in plan.cases:
        runner.run(case, 1)  # the first of its kind touches new memory
    size = machine.STREAM_BYTES if memory is None else min(machine.STREAM_BYTES, memory // 4)
    threads, gpu, first = setting.threads, setting.gpu, (opened.path, setting.threads, str(opened.device))
    with machine.Stream(threads, size) if gpu is None else nullcontext() as stream:
        for turn in range(rounds):
            for case in plan.cases:
                seconds = runner.run(case)
                samples.seconds.setdefault(case, []).append(seconds)
                log.debug("round %d, %s: %.3f s", turn + 1, case, seconds)
                step()
            if stream is not None:
                samples.bandwidth.append(stream.bandwidth())
            elif gpu is not None and gpu.bandwidth is not None:
                samples.bandwidth.append(gpu.bandwidth)
            try:
                if gpu is None:
                    samples.gemm.append(machine.gemm_flops(threads))
                step()
                samples.first.append(measure(first_token.command(*first)))
                step()
            except subprocess.CalledProcessError as error:
                lines = error.stderr.decode(errors="replace").strip().splitlines()
                why = lines[-1] if lines else f"exit status {error.returncode}"
                hint = "run it again with less in memory"
                raise DeepZigError(f"a process of the benchmark failed: {why}", str(opened.path), hint) from error


def _profile(opened: Artifact, model: Model, plan: Plan, runner: Runner, folder: Path) -> list[Account]:
    """Run every case once more, watched, and write the timeline."""
    assert isinstance(model.backend, Executor)
    recorder = Recorder(opened.build.calls, str(opened.path))
    runner.around = recorder.around
    with model.backend.watch(recorder, tensors=False):
        for case in plan.cases:
            with recorder.case(str(case)):
                runner.run(case, min(plan.tokens, PROFILED_STEPS))
    made = accounts(recorder.spans, opened.build)
    text = "\n\n".join(map(kernel_table, made)) + "\n"
    for name, content in (("trace.json", chrome_trace(recorder.spans, str(opened.path))), ("kernels.txt", text)):
        try:
            (folder / name).write_text(content, encoding="utf-8")
        except OSError as error:
            what = f"the profile can't be written: {error.strerror}"
            raise DeepZigError(what, str(folder / name), "choose another place with --profile") from None
    return made


def _tell(found: Results, parts: list[Account], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({**found.to_json(), "profile": [part.to_json() for part in parts]}))
        return
    click.echo("\n\n".join([report(found), *map(kernel_table, parts)]))


def _folder(path: Path, option: str) -> None:
    """Make a folder for what will be written, before time is spent.

    Raises:
        DeepZigError: it can't be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DeepZigError(
            f"the folder can't be made: {error.strerror}", str(path), f"choose another place with {option}"
        ) from None


@contextmanager
def _bar(length: int, hidden: bool) -> Iterator[Callable[[], None]]:
    """A progress bar on a terminal; click's, since the base install has no other."""
    with click.progressbar(
        length=length, label="bench", file=sys.stderr, hidden=hidden or not sys.stderr.isatty()
    ) as bar:
        yield lambda: bar.update(1)
