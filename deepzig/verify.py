"""The command `deepzig verify`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from .errors import DeepZigError

EXAMPLES = """
\b
Examples:
  deepzig verify artifacts/built/demo
  deepzig verify artifacts/built/demo --all-builds
  deepzig verify artifacts/built/demo --against ./checkpoint    (needs deepzig[compile])
"""


@click.command(epilog=EXAMPLES, context_settings={"auto_envvar_prefix": "DEEPZIG"})
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--against", type=click.Path(path_type=Path), help="Compute the vectors again from this checkpoint.")
@click.option("--all-builds", is_flag=True, help="Check all builds that this machine can run, not only the best.")
@click.option("--device", help="Where it runs: cpu, cuda, cuda:1 or metal; by default where it can.")
@click.option("--threads", type=click.IntRange(1), help="Threads of the kernels; by default all processors.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object for each build, on a line of its own.")
@click.option("--traceback", is_flag=True, help="Show where an error comes from.")
def verify(
    artifact: Path, against: Path | None, all_builds: bool, device: str | None, threads: int | None, as_json: bool,
    traceback: bool,
) -> None:  # fmt: skip
    """Check ARTIFACT on this machine: the hashes of its files, then what its kernels compute.

    Each kernel's results are compared with those recorded when the model was compiled. The first that is wrong is
    named, and the exit status is 2.
    """
    from deepzig.artifacts.cpu_features import this_machine
    from deepzig.artifacts.devices import parse_device
    from deepzig.artifacts.reader import open_artifact
    from deepzig.runtime.verify import check, read_vectors, replay, runnable

    opened = open_artifact(artifact, full=True, device=None if device is None else parse_device(device))
    vectors = read_vectors(opened)
    if against is not None:
        vectors = _recompute(opened.manifest, vectors, against)
    wrong = []
    for one in runnable(opened, this_machine()) if all_builds else [opened]:
        with _bar(len(vectors.calls)) as advance:
            verdict = replay(one, vectors, threads, advance)
        if as_json:
            click.echo(json.dumps(_report(one, verdict)))
        elif not verdict.wrong:
            click.echo(_summary(one, verdict))
        wrong += [(one, verdict)] if verdict.wrong else []
    for one, verdict in wrong:
        check(one, verdict)


@contextmanager
def _bar(length: int) -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar on a terminal, else nothing."""
    with click.progressbar(length=length, file=sys.stderr, hidden=not sys.stderr.isatty()) as bar:

        def advance(stage: str, done: int, total: int) -> None:
            bar.label = stage
            bar.update(done - bar.pos)

        yield advance


def _summary(artifact: Any, verdict: Any) -> str:
    worst, total = verdict.worst, int(artifact.manifest.model["num_hidden_layers"])
    layers = len([i for i in verdict.layers if i < total])
    entries = ", ".join(dict.fromkeys(f.entry for f in verdict.findings))
    return (
        f"ok: build {artifact.build.name}, all files, {layers} of {total} layers, {len(verdict.findings)} values of "
        f"{entries}; the worst is {worst.distance:.1e} off ({worst.call.op}), allowed is {worst.allowed:.0e}"
    )


def _report(artifact: Any, verdict: Any) -> dict[str, Any]:
    return {
        "artifact": str(artifact.path),
        "build": artifact.build.name,
        "ok": not verdict.wrong,
        "layers": list(verdict.layers),
        "num_hidden_layers": artifact.manifest.model["num_hidden_layers"],
        "values": len(verdict.findings),
        "worst": _finding(verdict.worst),
        "wrong": list(map(_finding, verdict.wrong)),
    }


def _finding(found: Any) -> dict[str, Any]:
    call = found.call
    return {
        "entry": found.entry, "layer": call.layer, "op": call.op, "where": call.where, "kernels": list(found.kernels),
        "value": found.value, "distance": min(found.distance, sys.float_info.max), "allowed": found.allowed,
    }  # fmt: skip


def _recompute(manifest: Any, vectors: Any, checkpoint: Path) -> Any:
    try:
        from deepzig.compiler.against import recompute
    except ImportError as error:
        raise DeepZigError(
            f"{error.name} is not installed", "deepzig verify --against", "pip install 'deepzig[compile]'"
        ) from error
    return recompute(manifest, vectors, checkpoint)
