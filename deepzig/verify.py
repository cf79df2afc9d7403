"""The command `deepzig verify`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from .errors import DeepZigError

EXAMPLES = """
\b
Examples:
  deepzig verify artifacts/built/demo
  deepzig verify artifacts/built/demo --against ./checkpoint    (needs deepzig[compile])
"""


@click.command(epilog=EXAMPLES, context_settings={"auto_envvar_prefix": "DEEPZIG"})
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--against", type=click.Path(path_type=Path), help="Compute the vectors again from this checkpoint.")
@click.option("--threads", type=click.IntRange(1), help="Threads of the kernels; by default all processors.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
@click.option("--traceback", is_flag=True, help="Show where an error comes from.")
def verify(artifact: Path, against: Path | None, threads: int | None, as_json: bool, traceback: bool) -> None:
    """Check ARTIFACT on this machine: the hashes of its files, then what its kernels compute.

    Each kernel's results are compared with those recorded when the model was compiled. The first that is wrong is
    named, and the exit status is 2.
    """
    from deepzig.artifacts.reader import open_artifact
    from deepzig.runtime.verify import check, read_vectors, replay

    opened = open_artifact(artifact, full=True)
    vectors = read_vectors(opened)
    if against is not None:
        vectors = _recompute(opened.manifest, vectors, against)
    stderr = sys.stderr
    with click.progressbar(range(len(vectors.calls)), label="verify", file=stderr, hidden=not stderr.isatty()) as bar:
        verdict = replay(opened, vectors, threads, lambda _, done, __: bar.update(done - bar.pos))
    total = int(opened.manifest.model["num_hidden_layers"])
    worst = verdict.worst
    result: dict[str, Any] = {
        "artifact": str(artifact),
        "build": opened.build.name,
        "ok": verdict.first is None,
        "layers": list(verdict.layers),
        "num_hidden_layers": total,
        "values": len(verdict.findings),
        "tolerance": verdict.tolerance,
        "worst": {"distance": worst.distance, "entry": worst.entry, **vars(worst.call), "value": worst.value},
    }
    if as_json:
        click.echo(json.dumps(result))
    check(opened, verdict)
    if not as_json:
        layers = len([i for i in verdict.layers if i < total])
        click.echo(
            f"ok: build {opened.build.name}, all files, {layers} of {total} layers, {len(verdict.findings)} values of "
            f"{', '.join(dict.fromkeys(c.entry for c in vectors.calls))}; "
            f"the worst is {worst.distance:.1e} off ({worst.call.op}), allowed is {verdict.tolerance:.0e}"
        )


def _recompute(manifest: Any, vectors: Any, checkpoint: Path) -> Any:
    try:
        from deepzig.compiler.against import recompute
    except ImportError as error:
        raise DeepZigError(
            f"{error.name} is not installed", "deepzig verify --against", "pip install 'deepzig[compile]'"
        ) from error
    return recompute(manifest, vectors, checkpoint)
