"""The command `deepzig inspect`."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import click

from deepzig.artifacts.devices import parse_device
from deepzig.errors import DeepZigError
from deepzig.runtime.library import default_threads
from deepzig.runtime.machine import bandwidth

from .facts import inspect_artifact
from .page import page
from .text import printable, report
from .units import parse_size

EXAMPLES = """
\b
Examples:
  deepzig inspect artifacts/built/demo
  deepzig inspect artifacts/built/demo --html demo.html
  deepzig inspect artifacts/built/demo --ram 16GiB --no-measure --json
"""


@click.command(epilog=EXAMPLES, context_settings={"auto_envvar_prefix": "DEEPZIG"})
@click.argument("artifact", type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="Print everything as one JSON object.")
@click.option("--html", type=click.Path(), help="Write a page with drawings instead, to this file.")
@click.option("--device", help="Where it shall run: cpu, cuda, cuda:1 or metal; by default where it can.")
@click.option("--ram", help="Memory to plan for, such as 16GiB; by default this machine's or its GPU's.")
@click.option("--measure/--no-measure", default=True, help="Measure the memory bandwidth, to predict speeds.")
@click.option("--traceback", is_flag=True, help="Show where an error comes from.")
def inspect(
    artifact: str, as_json: bool, html: str | None, device: str | None, ram: str | None, measure: bool, traceback: bool
) -> None:  # fmt: skip
    """Tell what ARTIFACT is, what memory it takes and how fast it can be; it need not be for this machine."""
    memory = None if ram is None else _ram(ram)
    measured = (lambda: bandwidth(default_threads())) if measure else None
    chosen = None if device is None else parse_device(device)
    facts, drawing = inspect_artifact(Path(artifact), memory, measured, chosen)
    if html is not None:
        write_file(Path(html), page(facts, drawing))
        click.echo(printable(f"wrote {html}"), err=True)
    if as_json:
        click.echo(json.dumps(facts.to_json(), allow_nan=False))
    elif html is None:
        click.echo(report(facts))


def _ram(text: str) -> int:
    ram = parse_size(text)
    if not ram:
        raise DeepZigError(f"{text!r} is no amount of memory", "--ram", "write it like 16GiB or 800MB")
    return ram


def write_file(path: Path, text: str) -> None:
    """Write the file beside its place, and put it there when it is whole.

    Raises:
        DeepZigError: it can't be written.
    """
    temporary = ""
    try:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}.", delete=False
        ) as file:
            temporary = file.name
            file.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        what = f"the page can't be written: {error.strerror}"
        raise DeepZigError(what, str(path), "choose another place with --html") from None
    finally:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
