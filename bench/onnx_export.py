"""An artifact against onnxruntime on the export of the same weights, and what more experts cost onnxruntime.

    python bench/onnx_export.py                     # 0.9 billion parameters in f32 and q4: minutes, 15 GB of disk
    python bench/onnx_export.py --only q4 --rounds 5

Contenders take turns in one run, each in a process that is stopped while others run; figures are medians, ratios are
medians of the ratios of turns: read those where a machine is shared.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click
from contest import Contender, Samples, closing, take_turns
from limits import median_ratio
from protocol import Case
from shapes import Format, Shape, artifact, onnx_model

from deepzig.models.presets import PRESETS
from deepzig.runtime import machine
from deepzig.runtime.bench.report import digits
from deepzig.runtime.inspect.text import table

HERE = Path(__file__).parent
OURS, PEER = "DeepZig", "onnxruntime"
STEPS = 32
DECODES = Case(batch=1, depth=32, steps=STEPS), Case(batch=1, depth=1024, steps=STEPS)
CASES = (*DECODES, Case(batch=4, depth=32, steps=STEPS), Case(prompt=512))
PAGE = 64
"""Tokens that a case may take more of the cache than it says, for each sequence."""

SHAPE = Shape("onnx", {**PRESETS["small"], "num_hidden_layers": 8}, "8 of small's 16 layers")
FORMS = Format("f32", ("--dtype", "f32")), Format("q4", ("--dtype", "f32", "--quant", "q4"))
DOMAINS = {"f32": ("standard",), "q4": ("standard", "microsoft")}
"""Format -> the domains of its exports: in standard ops matrices are widened in every call."""

EXPERTS = 8, 64
GROWTH = tuple(
    Shape(f"onnx-{count}-experts", {**SHAPE.config, "num_hidden_layers": 4, "n_routed_experts": count, "n_group": 1,
    "topk_group": 1})
    for count in EXPERTS
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A line of the report: tokens a second of a contender, and of the one that it is compared with.

    Attributes:
        name: what was done.
        first: who is measured.
        second: who it is compared with.
        speeds: tokens a second of both, medians.
        ratio: how many times as fast the first is, median over turns.
    """

    name: str
    first: str
    second: str
    speeds: tuple[float, float]
    ratio: float


def compare(label: str, case: Case, samples: Samples, first: str, second: str) -> Row:
    """Two contenders at a case."""
    a, b = (samples.seconds[name, case] for name in (first, second))
    speeds = case.tokens / statistics.median(a), case.tokens / statistics.median(b)
    return Row(f"{label} {case}", first, second, speeds, median_ratio(b, a))


def contend(
    commands: Mapping[str, Sequence[str]], cases: Sequence[Case], threads: int, rounds: int, log: Path
) -> Samples:  # fmt: skip
    """Run contenders in turns."""
    started: list[Contender] = []
    with closing(started):
        for name, command in commands.items():
            say(f"loading {name}")
            started.append(Contender(name, [sys.executable, *command], log / f"{name}.log"))
        return take_turns(started, cases, rounds, 300.0, lambda: 0.0, lambda: 0.0, say)


def ours(folder: Path, cases: Sequence[Case], threads: int) -> list[str]:
    """The command of our contender."""
    cache = sum(c.batch * ((c.prompt or c.depth + c.steps) + PAGE) for c in cases)
    return [str(HERE / "deepzig_worker.py"), str(folder), str(threads), str(cache)]


def theirs(model: Path, threads: int) -> list[str]:
    """The command of onnxruntime."""
    return [str(HERE / "onnx_worker.py"), str(model), str(threads)]


def speed_rows(form: Format, work: Path, threads: int, rounds: int) -> list[Row]:
    """We and onnxruntime with the same weights."""
    folder = artifact(SHAPE, form, work, say)
    assert folder is not None, "the artifact could not be made"
    commands = {OURS: ours(folder, CASES, threads)}
    for domain in DOMAINS[form.name]:
        model = onnx_model(SHAPE, form, domain, work, say)
        commands[f"{PEER} ({domain})"] = theirs(model, threads)
    samples = contend(commands, CASES, threads, rounds, work / SHAPE.name)
    peers = [name for name in commands if name != OURS]
    return [compare(form.name, case, samples, OURS, peer) for case in CASES for peer in peers]


def growth_rows(work: Path, threads: int, rounds: int) -> list[Row]:
    """onnxruntime with few and many routed experts of the same sizes, of which as many are chosen."""
    form, commands = FORMS[0], {}
    for shape, count in zip(GROWTH, EXPERTS, strict=True):
        commands[f"{count} experts"] = theirs(onnx_model(shape, form, "standard", work, say), threads)
    samples = contend(commands, DECODES, threads, rounds, work / GROWTH[0].name)
    few, many = commands
    return [compare(PEER, case, samples, many, few) for case in DECODES]


def say(text: str) -> None:
    """Tell what is going on, away from the table."""
    click.echo(text, err=True)


@click.command()
@click.option("--only", type=click.Choice([*(form.name for form in FORMS), "experts"]), help="One part of it.")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="Turns; medians are shown.")
@click.option("--threads", type=click.IntRange(1), default=machine.cores(), show_default=True, help="Of everyone.")
@click.option(
    "--work", type=click.Path(path_type=Path), default=HERE.parent / "build" / "bench", help="Where models are kept."
)
@click.option("--json", "out", type=click.Path(path_type=Path), help="Write the rows there, too.")
def main(only: str | None, rounds: int, threads: int, work: Path, out: Path | None) -> None:
    """Compare an artifact with onnxruntime, and exports of few and of many experts."""
    rows: list[Row] = []
    for form in FORMS:
        if only in (None, form.name):
            rows += speed_rows(form, work, threads, rounds)
    if only in (None, "experts"):
        rows += growth_rows(work, threads, rounds)
    cells: list[Sequence[str]] = [("", "", "tok/s", "against", "tok/s", "ratio")]
    cells += [(r.name, r.first, digits(r.speeds[0]), r.second, digits(r.speeds[1]), f"{r.ratio:.2f}") for r in rows]
    text = "\n".join(table(cells, (2, 4, 5)))
    click.echo(f"{machine.cpu_name()}, {threads} threads, medians of {rounds} turns; {SHAPE.note}\n\n{text}")
    if out is not None:
        facts = {"cpu": machine.cpu_name(), "threads": threads, "rounds": rounds, "rows": [asdict(r) for r in rows]}
        out.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
