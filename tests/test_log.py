"""DEEPZIG_LOG: what is told, where, and by whom."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from deepzig import cli, log
from deepzig.errors import DeepZigError

LOGGER = logging.getLogger("deepzig")


@pytest.fixture(autouse=True)
def untouched() -> Iterator[None]:
    """The logger as it was."""
    level, handlers = LOGGER.level, list(LOGGER.handlers)
    LOGGER.handlers.clear()
    yield
    LOGGER.setLevel(level)
    LOGGER.handlers[:] = handlers


@pytest.mark.parametrize("name", [*log.LEVELS, "INFO", "Debug"])
@pytest.mark.parametrize("command", [True, False])
def test_levels(name: str, command: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPZIG_LOG", name)
    log.configure(command)
    assert LOGGER.level == getattr(logging, name.upper())


def test_without_a_level(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library leaves everything alone, a command tells of warnings; an empty variable is none."""
    monkeypatch.delenv("DEEPZIG_LOG", raising=False)
    before = LOGGER.level
    log.configure()
    assert LOGGER.level == before and not LOGGER.handlers
    monkeypatch.setenv("DEEPZIG_LOG", "")
    log.configure(command=True)
    assert LOGGER.level == logging.WARNING and len(LOGGER.handlers) == 1


def test_one_handler_however_often(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("DEEPZIG_LOG", "info")
    for _ in range(3):
        log.configure(command=True)
    logging.getLogger("deepzig.runtime.some").info("read %d", 7)
    logging.getLogger("deepzig.runtime.some").debug("too much")
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1
    assert err.endswith(" ms INFO    deepzig.runtime.some: read 7\n")


def test_an_unknown_level(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("DEEPZIG_LOG", "loud")
    want = "no log level is called 'loud'\n  at: DEEPZIG_LOG\n  fix: choose from debug, info, warning, error"
    with pytest.raises(DeepZigError) as error:
        log.configure()
    assert str(error.value) == want
    with pytest.raises(SystemExit) as stop:
        cli.main(["run", "nowhere", "x"])
    assert stop.value.code == 2 and capsys.readouterr().err == f"error: {want}\n"


SCRIPT = """
import logging, sys
if "theirs" in sys.argv:
    logging.basicConfig(format="theirs %(message)s")
from deepzig.log import configure
configure()
logging.getLogger("deepzig.x").info("told")
"""


@pytest.mark.parametrize(
    ("theirs", "level", "lines"), [((), "info", 1), ((), "", 0), (("theirs",), "info", 1), (("theirs",), "", 0)]
)
def test_in_a_program(theirs: tuple[str, ...], level: str, lines: int) -> None:
    """Messages come once: through the program's handlers if it has any, else through ours if a level is named."""
    command = [sys.executable, "-P", "-c", SCRIPT, *theirs]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "DEEPZIG_LOG": level}
    )  # fmt: skip
    told = done.stderr.splitlines()
    assert len(told) == lines and all(line.endswith("told") for line in told)
    assert all(line.startswith("theirs") == bool(theirs) for line in told)
