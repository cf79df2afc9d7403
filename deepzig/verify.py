"""The command `deepzig verify`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
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
  deepzig verify model.onnx                                     (needs deepzig[onnx])
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
    named, and the exit status is 2. Of an ONNX model that DeepZig exported it is the outputs of the graph, computed by
    onnxruntime, that are compared.
    """
    from deepzig.artifacts.cpu_features import this_machine
    from deepzig.artifacts.devices import parse_device
    from deepzig.artifacts.parts import is_onnx
    from deepzig.artifacts.reader import open_artifact
    from deepzig.runtime.verify import check, read_vectors, replay, runnable

    if is_onnx(artifact):
        _refuse(artifact, {"--against": against, "--all-builds": all_builds, "--device": device})
        _verify_onnx(artifact, threads, as_json)
        return
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


def _refuse(model: Path, options: Mapping[str, Any]) -> None:
    """Raises DeepZigError if an option is given that an ONNX model has no use for."""
    for name, value in options.items():
        if value:
            raise DeepZigError(f"{name} is for artifacts", str(model), "leave the option out")


def _verify_onnx(model: Path, threads: int | None, as_json: bool) -> None:
    from deepzig.artifacts.onnx_file import open_onnx
    from deepzig.runtime.onnx_verify import check_onnx, read_calls, replay_onnx, worst

    file = open_onnx(model, full=True)
    calls = read_calls(file)
    with _bar(len(calls)) as advance:
        findings = replay_onnx(file, calls, threads, advance)
    most = worst(findings)
    if as_json:
        report = {
            "model": str(model), "ok": all(f.ok for f in findings), "num_hidden_layers": len(file.caches),
            "values": len(findings), "worst": _output(most), "wrong": [_output(f) for f in findings if not f.ok],
        }  # fmt: skip
        click.echo(json.dumps(report))
    elif most.ok:
        click.echo(
            f"ok: all files, {len(file.caches)} layers, {len(findings)} outputs of {', '.join(calls)}; the worst is "
            f"{most.distance:.1e} off ({most.output}), allowed is {most.allowed:.0e}"
        )
    check_onnx(file, findings)


def _output(finding: Any) -> dict[str, Any]:
    return {**asdict(finding), "distance": min(finding.distance, sys.float_info.max)}


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
