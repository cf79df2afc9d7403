"""The command `deepzig`: a table of commands, each imported when it is called."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import NamedTuple

import click

from . import __version__
from .errors import DeepZigError
from .log import configure


class Entry(NamedTuple):
    """A command: the module and the function in it, what pip has to install for it, and what it does."""

    module: str
    function: str
    requirement: str
    summary: str


BASE, SERVER = "deepzig", "deepzig[server]"
COMMANDS = {
    "run": Entry("deepzig.runtime.cli", "run", BASE, "Continue a text."),
    "chat": Entry("deepzig.runtime.cli", "chat", BASE, "Talk with a model."),
    "serve": Entry("deepzig.server.cli", "serve", SERVER, "Serve models by OpenAI's API (extra [server])."),
    "keys": Entry("deepzig.server.key_commands", "keys", SERVER, "Make keys for those who may ask the server."),
    "bench": Entry("deepzig.runtime.bench.cli", "bench", BASE, "Measure speed, beside what the machine can do."),
    "inspect": Entry("deepzig.runtime.inspect.cli", "inspect", BASE, "Tell what an artifact is, takes and can do."),
    "verify": Entry("deepzig.verify", "verify", BASE, "Check files, and what kernels compute here."),
    "pack": Entry("deepzig.pack", "pack", BASE, "Write an artifact to one file."),
    "unpack": Entry("deepzig.pack", "unpack", BASE, "Write such a file to a folder again."),
}
"""The commands, in the order in which they are listed. Help is made from the table alone: nothing is imported."""

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
        entry = COMMANDS[cmd_name]
        try:
            command: click.Command = getattr(import_module(entry.module), entry.function)
        except ImportError as error:
            what, hint = f"{error.name or cmd_name} is not installed", f"pip install '{entry.requirement}'"
            raise DeepZigError(what, f"deepzig {cmd_name}", hint) from error
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """What each command does."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.summary) for name, entry in COMMANDS.items()])


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
