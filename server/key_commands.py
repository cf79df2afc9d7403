"""The commands `deepzig keys`: who may ask the server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from deepzig.errors import DeepZigError

from .keys import Key, Limits, hashed, new_key, read_keys, write_keys

EXAMPLES = """
\b
Examples:
  deepzig keys add keys.json alice --requests-per-minute 60 --tokens-per-day 1000000
  deepzig keys list keys.json
  deepzig keys revoke keys.json alice
  kill -HUP SERVER                       (a running server reads the file again)
"""

FILE = click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
NAME = click.argument("name")


def _limit_options(command: Any) -> Any:
    """An option for each limit."""
    for name, field in reversed(Limits.model_fields.items()):
        command = click.option(f"--{name.replace('_', '-')}", type=click.IntRange(1), help=field.description)(command)
    return command


@click.group(epilog=EXAMPLES)
def keys() -> None:
    """Make, list and revoke keys for `deepzig serve --api-keys`."""


@keys.command()
@FILE
@NAME
@_limit_options
def add(file: Path, name: str, **limits: int | None) -> None:
    """Make a key for NAME and print it: it is not kept, its hash goes to FILE."""
    known = read_keys(file) if file.exists() else []
    if any(key.name == name for key in known):
        hint = f"revoke it first: deepzig keys revoke {file} {name}"
        raise DeepZigError(f"{name} has a key already", str(file), hint)
    key = new_key()
    try:
        made = Key(name=name, sha256=hashed(key), **limits)
    except ValueError:
        what = f"{name!r} can't be the name of a key"
        raise DeepZigError(what, "argument NAME", "use letters, digits, and any of . _ @ -") from None
    write_keys(file, [*known, made])
    click.echo(key)


@keys.command("list")
@FILE
def list_keys(file: Path) -> None:
    """Tell whose keys are in FILE, and their limits."""
    for key in read_keys(file):
        limits = key.model_dump(exclude_none=True, exclude={"name", "sha256"})
        click.echo(" ".join([key.name, *(f"{name}={value}" for name, value in limits.items())]))


@keys.command()
@FILE
@NAME
def revoke(file: Path, name: str) -> None:
    """Take the key of NAME out of FILE."""
    known = read_keys(file)
    left = [key for key in known if key.name != name]
    if len(left) == len(known):
        raise DeepZigError(f"{name} has no key", str(file), f"look for it: deepzig keys list {file}")
    write_keys(file, left)
