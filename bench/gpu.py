"""DeepZig on this GPU: every kernel against the measured copy bandwidth and matrix units, and whole models.

    python bench/gpu.py --only small --json gpu.json
    python bench/gpu.py --only "v2-lite q4" --torch-python TORCH/bin/python

The limits are measured first, by kernels of ours in the same process. A kernel is launched many times over with the
arguments that it has in a model, so small weights may come from a cache: read shares above 100 % so. PyTorch multiplies
the same sizes in bf16, its weights too large for a cache.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import click
from gpu_kernels import KernelRow, Traffic, cells, measured, products
from gpu_limits import Limits
from shapes import FORMATS, Format, Shape, artifact, shapes

from deepzig.artifacts.cpu_features import this_machine
from deepzig.errors import DeepZigError
from deepzig.runtime import load, machine
from deepzig.runtime.bench.cases import Case, Decode, Plan, Prefill
from deepzig.runtime.bench.runner import Runner
from deepzig.runtime.inspect.text import table
from deepzig.runtime.model import Model
from deepzig.runtime.vm import VirtualMachine
from deepzig.targets.gpu.device import GpuTarget
from deepzig.targets.registry import find_targets

HERE = Path(__file__).parent
HEADS = ("", "calls", "us", "MB", "GB/s", "of copy", "TFLOP/s", "of units", "torch x")
STEPS = 64
CASES: tuple[Case, ...] = (Decode(1, 32), Decode(1, 4096), Decode(16, 32), Decode(64, 32), Prefill(512), Prefill(4096))
PROFILED: tuple[tuple[str, Case], ...] = (
    ("decode", Decode(1, 4096)), ("decode", Decode(16, 32)), ("prefill", Prefill(256)),
)  # fmt: skip


def say(text: str) -> None:
    """Tell what is going on, away from the table."""
    click.echo(text, err=True)


def wanted(text: str, only: Sequence[str]) -> bool:
    """Whether a row is asked for: all words of one of the wishes occur in its label."""
    return not only or any(all(word in text for word in wish.split()) for wish in only)


def whole(model: Model, runner: Runner, name: str) -> Iterator[dict[str, object]]:
    """Tokens a second of the whole model."""
    for case in CASES:
        runner.run(case)
        took = min(runner.run(case) for _ in range(3))
        tokens = case.prompt if isinstance(case, Prefill) else case.batch * STEPS
        yield {"label": f"{name} {case}", "tokens_per_second": tokens / took}


def profile(model: Model, runner: Runner, shape: Shape, name: str) -> Iterator[list[KernelRow]]:
    """The kernels of calls."""
    assert isinstance(model.backend, VirtualMachine)
    config, page = shape.config, model.manifest.bounds.page_size
    experts = int(config["n_routed_experts"] + config["n_shared_experts"])
    chosen = int(config["num_experts_per_tok"] + config["n_shared_experts"])
    for entry, case in PROFILED:
        rows = case.prompt if isinstance(case, Prefill) else case.batch
        tokens = case.prompt if isinstance(case, Prefill) else case.batch * (case.depth + 1)
        about = Traffic((model.pool.count, page), tokens, experts, chosen, rows)
        yield measured(f"{name} {case}", model.backend, runner, entry, case, about)


def against_torch(rows: list[KernelRow], python: str, many: int) -> list[KernelRow]:
    """The same with PyTorch's seconds for the dense products."""
    sizes = sorted(set(products(rows)))
    asked = json.dumps([(many, k, n) for k, n in sizes])
    done = subprocess.run(
        [python, str(HERE / "gpu_torch_worker.py")], input=asked, capture_output=True, text=True, check=False
    )
    if done.returncode:
        say(f"PyTorch: {(done.stderr.strip().splitlines() or ['no message'])[-1]}; left out")
        return rows
    took = dict(zip(sizes, json.loads(done.stdout), strict=True))
    of = {row.kernel: took[next(iter(products([row])))] for row in rows if list(products([row]))}
    return [replace(row, torch=1e6 * of[row.kernel] / row.microseconds) if row.kernel in of else row for row in rows]


def measure(
    shape: Shape, form: Format, folder: Path, device: str, torch: str | None
) -> tuple[list[dict[str, object]], list[KernelRow]]:
    """Whole models and kernels, of a model in a format."""
    name = f"{shape.name} {form.name}"
    deep = max(c.prompt if isinstance(c, Prefill) else c.depth + STEPS for c in CASES) + 64
    batch = max(c.batch for c in CASES if isinstance(c, Decode))
    rooms = (deep, *(128 for _ in range(batch - 1)))
    plan = Plan(CASES, STEPS, (max(c.depth for c in CASES if isinstance(c, Decode)),), rooms, ())
    with load(folder, device=device, cache_tokens=deep + 192 * batch) as model:
        runner = Runner(model, plan)
        for _ in runner.fill():
            pass
        models, kernels = list(whole(model, runner, name)), []
        for rows in profile(model, runner, shape, name):
            many = 512 if "prefill" in rows[0].label else int(rows[0].label.split("batch ")[1].split()[0])
            kernels += rows if torch is None else against_torch(rows, torch, many)
    return models, kernels


@click.command()
@click.option("--device", default="cuda", show_default=True, help="cuda, cuda:1, metal.")
@click.option("--only", multiple=True, help='Words of the rows wanted, such as "small q8"; several are several.')
@click.option("--torch-python", help="An interpreter that has PyTorch for this GPU.")
@click.option("--work", type=click.Path(path_type=Path), default=HERE.parent / "build" / "bench", help="For models.")
@click.option("--json", "out", type=click.Path(path_type=Path), help="Write all figures there.")
def main(device: str, only: tuple[str, ...], torch_python: str | None, work: Path, out: Path | None) -> None:
    """Measure the limits of a GPU, kernels against them, and whole models."""
    kind, _, index = device.partition(":")
    target = find_targets(kind, this_machine())[0][0]
    assert isinstance(target, GpuTarget)
    limits = Limits(target, int(index or 0))
    copy = limits.copy()
    peaks = {name: limits.unit(name) for name in sorted({*target.gpu.units.values(), "fma"})}
    click.echo(f"copy {copy / 1e9:.0f} GB/s; " + ", ".join(f"{n} {p / 1e12:.1f} TFLOP/s" for n, p in peaks.items()))
    models: list[dict[str, object]] = []
    kernels: list[KernelRow] = []
    for shape in shapes(machine.memory()):
        for form in FORMATS:
            if not wanted(f"{shape.name} {form.name}", only):
                continue
            folder = artifact(
                shape, replace(form, name=f"{form.name}-{kind}", options=(*form.options, "--target", kind)), work, say
            )
            if folder is None:
                continue
            try:
                found, rows = measure(shape, form, folder, device, torch_python)
            except DeepZigError as error:
                say(f"{shape.name} {form.name}: {error.what}; left out")
                continue
            models += found
            kernels += rows
            unit = target.gpu.unit(form.name)
            for label in dict.fromkeys(row.label for row in rows):
                lines = [(label, *HEADS[1:]), *cells([r for r in rows if r.label == label], copy, peaks, unit)]
                click.echo("\n" + "\n".join(table(lines, range(1, len(HEADS)))))
            if out is not None:
                facts = {"device": device, "copy": copy, "units": peaks}
                data = {**facts, "models": models, "kernels": [asdict(row) for row in kernels]}
                out.write_text(json.dumps(data, indent=1) + "\n")
    click.echo("\n" + "\n".join(f"{m['label']}: {m['tokens_per_second']:.1f} tok/s" for m in models))


if __name__ == "__main__":
    try:
        main()
    except DeepZigError as error:
        say(str(error))
        sys.exit(2)
