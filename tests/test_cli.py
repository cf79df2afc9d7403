"""The command `deepzig`: its table, its errors and their exit codes. The commands are tested with their rooms."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from types import ModuleType

import click
import pytest

from deepzig import __version__, cli
from deepzig.errors import DeepZigError


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    code = 0
    try:
        cli.main(list(arguments))
    except SystemExit as error:
        code = int(error.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "--version") == (0, f"deepzig, version {__version__}\n", "")


def test_help_lists_every_command_with_examples(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--help")
    assert code == 0
    listed = out.split("Commands:\n")[1].split("\n\n")[0]
    assert [line.split()[0] for line in listed.splitlines()] == list(cli.COMMANDS)
    assert "Examples:\n" in out and "deepzig-compile ./checkpoint" in out


def test_the_list_of_commands_needs_none_of_them(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = cli.COMMANDS["serve"]._replace(module="deepzig.nowhere")
    monkeypatch.setitem(cli.COMMANDS, "serve", missing)
    code, out, _ = run(capsys, "--help")
    assert code == 0 and "  serve    Serve models by OpenAI's API (extra [server]).\n" in out
    assert "..." not in out.split("Commands:\n")[1].split("\n\n")[0]  # no line is cut


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help_with_examples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, name, "--help")
    assert code == 0 and f"Usage: deepzig {name}" in out and "Examples:\n" in out


def test_an_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "fly")
    assert (code, out) == (2, "")
    assert err.endswith("Error: No such command 'fly'.\n")


def test_a_missing_argument(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "run")
    assert code == 2 and "Missing argument 'ARTIFACT'" in err


@pytest.mark.parametrize(
    ("module", "needs", "missing"),
    [("numpy", "deepzig", "numpy"), ("deepzig.nowhere", "deepzig[server]", "deepzig.nowhere")],
)
def test_what_is_not_installed(
    module: str, needs: str, missing: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(cli.COMMANDS, "fly", cli.Entry(module, "fly", needs, "Fly."))
    monkeypatch.setitem(sys.modules, "numpy", None)  # type: ignore[arg-type]
    code, _, err = run(capsys, "fly")
    assert code == 2
    told = f"{missing} is not installed\n  at: deepzig fly\n  fix: pip install '{needs}'"
    assert err == f"error: {told}\n"


def command(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Make `deepzig fail` raise."""

    @click.command()
    def fail() -> None:
        raise error

    module = ModuleType("failing")
    module.fail = fail  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "failing", module)
    monkeypatch.setitem(cli.COMMANDS, "fail", cli.Entry("failing", "fail", "", "Fail."))


def test_errors_take_three_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    command(monkeypatch, DeepZigError("what", "where", "hint"))
    assert run(capsys, "fail") == (2, "", "error: what\n  at: where\n  fix: hint\n")


def test_traceback_shows_the_rest(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    command(monkeypatch, DeepZigError("what", "where", "hint"))
    with pytest.raises(DeepZigError):
        cli.main(["--traceback", "fail"])
    monkeypatch.setenv("DEEPZIG_TRACEBACK", "1")
    with pytest.raises(DeepZigError):
        cli.main(["fail"])
    monkeypatch.setenv("DEEPZIG_TRACEBACK", "0")
    assert run(capsys, "fail")[0] == 2


@pytest.mark.parametrize("error", [KeyboardInterrupt(), click.Abort()])
def test_interrupted(error: BaseException, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    command(monkeypatch, error)
    code, out, err = run(capsys, "fail")
    assert (code, out) == (130, "") and "Traceback" not in err


def test_a_reader_that_goes_away() -> None:
    """`deepzig ... | head -1` ends without a word."""
    script = (
        "import os, sys; from deepzig import cli; r, w = os.pipe(); os.close(r); os.dup2(w, 1); cli.main(['--help'])"
    )
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr == ""


def test_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-P", "-m", "deepzig", "--version"], capture_output=True, text=True)
    assert done.stdout == f"deepzig, version {__version__}\n"


def test_the_table_loads_nothing() -> None:
    """`deepzig --version` imports no command, and every command it names is there."""
    script = "import sys; from deepzig.cli import main; main(['--version']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True)
    assert "numpy" not in done.stdout.split()
    for entry in cli.COMMANDS.values():
        assert isinstance(getattr(import_module(entry.module), entry.function), click.Command)
