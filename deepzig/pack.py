"""The commands `deepzig pack` and `deepzig unpack`."""

from __future__ import annotations

from pathlib import Path

import click

PACK_EXAMPLES = """
\b
Examples:
  deepzig pack artifacts/built/demo -o demo.deepzig
  deepzig run demo.deepzig "Once upon a time"
"""

UNPACK_EXAMPLES = """
\b
Examples:
  deepzig unpack demo.deepzig -o demo
"""


@click.command(epilog=PACK_EXAMPLES, context_settings={"auto_envvar_prefix": "DEEPZIG"})
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The file; ends in .deepzig.")
@click.option("--force", is_flag=True, help="Replace the output.")
@click.option("--traceback", is_flag=True, help="Show where an error comes from.")
def pack(artifact: Path, output: Path, force: bool, traceback: bool) -> None:
    """Write ARTIFACT to one file, which every command takes as it takes a folder.

    Weights are used where they lie in the file; code is unpacked to the cache folder when it is first needed.
    """
    from deepzig.artifacts.pack import pack as run

    run(artifact, output, force)
    click.echo(f"wrote {output}: {output.stat().st_size / 1e6:.1f} MB")


@click.command(epilog=UNPACK_EXAMPLES, context_settings={"auto_envvar_prefix": "DEEPZIG"})
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The folder.")
@click.option("--force", is_flag=True, help="Replace the output if it is an artifact.")
@click.option("--traceback", is_flag=True, help="Show where an error comes from.")
def unpack(artifact: Path, output: Path, force: bool, traceback: bool) -> None:
    """Write the packed ARTIFACT to a folder, byte for byte what was packed."""
    from deepzig.artifacts.pack import unpack as run

    run(artifact, output, force)
    click.echo(f"wrote {output}")
