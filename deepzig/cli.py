"""The command `deepzig`: a table of commands, each imported when it is called."""

from __future__ import annotations

import sys
from importlib import import_module

import click

from . import __version__
from .errors import DeepZigError
from .log import configure

COMMANDS = {
    "run": ("deepzig.runtime.cli", "run", "deepzig"),
    "chat": ("deepzig.runtime.cli", "chat", "deepzig"),
    "bench": ("deepzig.runtime.bench.cli", "bench", "deepzig"),
    "inspect": ("deepzig.runtime.inspect.cli", "inspect", "deepzig"),
    "serve": ("deepzig.server.cli", "serve", "deepzig[server]"),
    "keys": ("deepzig.server.key_commands", "keys", "deepzig[server]"),
    "pack": ("deepzig.pack", "pack", "deepzig"),
    "unpack": ("deepzig.pack", "unpack", "deepzig"),
    "verify": ("deepzig.verify", "verify", "deepzig"),
}
"""Command -> module, function in it, and what pip has to install for it."""

EXAMPLES = """
\b
Examples:
  deepzig run artifacts/built/demo "The quick brown fox" --max-tokens 32
  deepzig chat artifacts/built/demo
  deepzig serve artifacts/built/demo
  deepzig inspect artifacts/built/demo
  deepzig-compile ./checkpoint -o artifacts/built/demo    (makes artifacts)
"""


class Lazy(click.Group):
    """A group whose commands are imported on demand."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of all commands."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command.

        Raises:
            DeepZigError: what it needs is not installed.
        """
        if cmd_name not in COMMANDS:
            return None
        module, attribute, requirement = COMMANDS[cmd_name]
        try:
            command: click.Command = getattr(import_module(module), attribute)
        except ImportError as error:
            raise DeepZigError(
                f"{error.name or cmd_name} is not installed", f"deepzig {cmd_name}", f"pip install '{requirement}'"
            ) from error
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """What each command does; of one that lacks something, how to install it."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, self._told(ctx, name)) for name in COMMANDS])

    def _told(self, ctx: click.Context, name: str) -> str:
        try:
            command = self.get_command(ctx, name)
        except DeepZigError as error:
            return f"({error.hint})"
        return command.get_short_help_str(limit=66) if command else ""


@click.command(cls=Lazy, epilog=EXAMPLES, context_settings={"auto_envvar_prefix": "DEEPZIG"})
@click.option("--traceback", is_flag=True, help="Show where an error comes from.")
@click.version_option(__version__)
@click.pass_context
def group(context: click.Context, traceback: bool) -> None:
    """Run language models that deepzig-compile has compiled."""
    context.obj["traceback"] = traceback


def main(arguments: list[str] | None = None) -> None:
    """Entry point: errors take three lines and exit with 2, Ctrl-C with 130."""
    if arguments is None:
        arguments = sys.argv[1:]
        # tvm_ffi imports PyTorch wherever it is installed, which takes a second or two; no command has a use for it
        sys.modules.setdefault("torch", None)  # type: ignore[arg-type]
    given = {"traceback": False}
    try:
        configure(command=True)
        group.main(arguments, prog_name="deepzig", standalone_mode=False, obj=given)
    except DeepZigError as error:
        if given["traceback"] or "--traceback" in arguments:
            raise
        click.echo(f"error: {error}", err=True)
        sys.exit(2)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        sys.exit(130)
