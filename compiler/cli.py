"""The command `deepzig-compile`."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from deepzig import __version__
from deepzig.artifacts.machines import MACHINES
from deepzig.errors import DeepZigError
from deepzig.log import configure
from deepzig.targets.gpu.names import GPUS
from deepzig.targets.registry import DEFAULT, NATIVE

from .options import ONNX_DOMAINS, SELF_CHECKS
from .trace import Bounds

if TYPE_CHECKING:
    from .driver import Report

EXAMPLES = """
\b
Examples:
  deepzig-compile ./DeepSeek-V3-small -o artifacts/built/small
  deepzig-compile ./model --target x86-64-v3+x86-64-v4 -o out              (takes the better one where it is loaded)
  deepzig-compile ./model --target native+aarch64-linux+aarch64-macos -o out   (needs pip install 'deepzig[cross]')
  deepzig-compile ./model --target cuda -o out                         (needs pip install 'deepzig[compile-cuda]')
  deepzig-compile deepseek-ai/DeepSeek-V3 -o artifacts/built/v3    (after `hf download deepseek-ai/DeepSeek-V3`)
  deepzig-compile ./model.gguf -o artifacts/built/gguf
  deepzig-compile ./model --onnx out/model.onnx --dtype f16            (needs pip install 'deepzig[onnx]')
  deepzig-compile ./model --stop-after fuse_mla
"""


ARTIFACT_ONLY = ("output", "target", "chunk", "dump_ir", "fuse_limit", "debug_route")
"""Parameters that say how an artifact is made."""

SIGNALS = (signal.SIGINT, signal.SIGTERM)
INTERRUPTED = "interrupted; nothing was written"


@click.command(epilog=EXAMPLES, context_settings={"auto_envvar_prefix": "DEEPZIG", "show_default": True})
@click.argument("model", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The artifact's folder.")
@click.option(
    "--onnx", type=click.Path(path_type=Path), help="Write an ONNX model to this file instead, its weights beside it."
)
@click.option(
    "--onnx-domain",
    default="standard",
    type=click.Choice(list(ONNX_DOMAINS)),
    help="Ops that multiply by quantised matrices: standard ones, or onnxruntime's, which are faster in experts.",
)
@click.option(
    "--target",
    default=DEFAULT,
    help=f"One of {DEFAULT}, {NATIVE}, {', '.join(MACHINES)}; several, joined by +, share one artifact. Or a GPU: "
    f"{', '.join(GPUS)}, with options as in cuda:arch=sm_80+sm_90a.",
)
@click.option("--dtype", help="How weights are stored: f32, bf16 or f16.  [default: bf16; in ONNX f32]")
@click.option("--quant", help="Quantise matrices: q8, q4 or fp8, then rules such as experts.down_proj=q8,o_proj=float.")
@click.option("--cache", help="How the cache is stored: f32, bf16, f16 or q8 (8 bits).  [default: as --dtype]")
@click.option(
    "--chunk", default=Bounds.chunk, type=click.IntRange(64, 4096), help="Prompts are cut at multiples of this."
)
@click.option(
    "--embeddings", is_flag=True, help="Return hidden states too, for `embed`; models that guess ahead do anyhow."
)
@click.option(
    "--self-check",
    default="sampled",
    type=click.Choice(SELF_CHECKS),
    help="Layers that `deepzig verify` can check: a sample of a large model's, all, or none.",
)
@click.option("--force", is_flag=True, help="Replace the output if it is an artifact.")
@click.option(
    "--dump-ir", type=click.Path(path_type=Path), help="Write the IR before and after each pass to this folder."
)
@click.option("--stop-after", help="Print the IR after this pass and stop.")
@click.option("--fuse-limit", type=click.IntRange(0), help="Make at most this many rewrites, to bisect a wrong one.")
@click.option("--debug-route", is_flag=True, help="Add an input that forces the expert choice, for tests.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option("--traceback", is_flag=True, help="Show where an error comes from.")
@click.version_option(__version__)
def command(
    model: Path, output: Path | None, onnx: Path | None, onnx_domain: str, target: str, dtype: str | None,
    quant: str | None, cache: str | None, chunk: int, embeddings: bool, self_check: str, force: bool,
    dump_ir: Path | None, stop_after: str | None, fuse_limit: int | None, debug_route: bool, as_json: bool,
    traceback: bool,
) -> None:  # fmt: skip
    """Compile MODEL to an artifact, or export it to ONNX.

    MODEL is a Hugging Face checkpoint folder, a GGUF file, the name of a model that `hf download` has fetched, or
    `reference`, a small model that comes with DeepZig.
    """
    try:
        configure(command=True)
        from .driver import compile_model, ir_text
        from .options import Options

        bounds = Bounds(chunk=chunk, rows=max(Bounds.rows, chunk))
        options = Options(
            target=target, dtype=dtype or ("f32" if onnx else Options.dtype), quant=quant, cache=cache, bounds=bounds,
            embeddings=embeddings, debug_route=debug_route, dump_ir=dump_ir, stop_after=stop_after,
            fuse_limit=fuse_limit, force=force, self_check=self_check,
        )  # fmt: skip
        if stop_after is not None:
            click.echo(ir_text(model, options), nl=False)
            return
        if onnx is not None:
            _check_fit_onnx()
        with _bars(quiet=as_json) as progress:
            if onnx is not None:
                report = _onnx_exporter()(model, onnx, options, onnx_domain, progress)
            elif output is not None:
                report = compile_model(model, output, options, progress)
            else:
                raise DeepZigError("there is nowhere to write the artifact", "--output", "name a folder with -o DIR")
    except DeepZigError as error:
        if traceback:
            raise
        click.echo(f"error: {error}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        click.echo(INTERRUPTED, err=True)
        sys.exit(130)
    summary = {
        "artifact" if onnx is None else "onnx": str(report.out),
        "seconds": round(report.seconds, 2),
        "kernels": report.kernels,
        "weights_bytes": report.weights_bytes,
    }
    if as_json:
        click.echo(json.dumps(summary))
        return
    kernels = "" if onnx is not None else f" {report.kernels} kernels,"
    click.echo(f"wrote {report.out}: {report.weights_bytes / 1e6:.1f} MB of weights,{kernels} {report.seconds:.1f} s")


def _check_fit_onnx() -> None:
    """Refuse options that say nothing about an ONNX model."""
    context = click.get_current_context()
    for option in context.command.params:
        given = context.get_parameter_source(str(option.name)) is ParameterSource.COMMANDLINE
        if given and option.name in ARTIFACT_ONLY:
            name = option.opts[-1]
            raise DeepZigError(f"{name} is for artifacts, not for ONNX models", name, f"leave out {name} or --onnx")


def _onnx_exporter() -> Callable[..., Report]:
    """The function that exports; says which extra to install where the package onnx is missing."""
    try:
        import onnx  # noqa: F401
    except ImportError:
        hint = "pip install 'deepzig[onnx]'"
        raise DeepZigError("ONNX models need the package onnx, which is not installed", "--onnx", hint) from None
    from .onnx.driver import compile_onnx

    return compile_onnx


@contextmanager
def _bars(quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """Progress bars on a terminal, else nothing."""
    if quiet or not sys.stderr.isatty():
        yield lambda *_: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description:>8}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, TaskID] = {}

        def update(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage)
            bars.update(tasks[stage], completed=done, total=total)

        yield update


def main() -> None:
    """Entry point of the console script; says which extra to install where the compiler is missing."""
    for number in SIGNALS:
        signal.signal(number, signal.default_int_handler)  # being told to end leaves nothing behind either
    try:
        if find_spec("tvm") is None:
            missing = DeepZigError("the compiler is not installed", "deepzig-compile", "pip install 'deepzig[compile]'")
            click.echo(f"error: {missing}", err=True)
            sys.exit(2)
        command()
    except KeyboardInterrupt:
        click.echo(INTERRUPTED, err=True)
        sys.exit(130)
    finally:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)  # all is done
