"""Log messages: the standard library's, under the logger `deepzig`, at the level that DEEPZIG_LOG names.

Modules log to `logging.getLogger(__name__)`. A library installs no handlers: without DEEPZIG_LOG a program sees what it
has asked `logging` for. The commands always tell of warnings and errors.
"""

from __future__ import annotations

import logging
import os
import sys

from .errors import DeepZigError

VARIABLE = "DEEPZIG_LOG"
LEVELS = {
    "debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR
}  # fmt: skip


class Stderr(logging.Handler):
    """Writes to whatever the standard error is at the moment."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("%(relativeCreated)7.0f ms %(levelname)-7s %(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line."""
        try:
            print(self.format(record), file=sys.stderr)
        except Exception:  # as the handlers of the standard library: a message that can't be told stops nothing
            self.handleError(record)


def configure(command: bool = False) -> None:
    """Set the level that DEEPZIG_LOG names.

    Args:
        command: the process is one of ours, not a program that uses the library: messages go to the standard error, of
            warnings and errors if no level is named. For a library they do where a level is named and the program has
            not set up `logging` itself.

    Raises:
        DeepZigError: no level is called like that.
    """
    name = os.environ.get(VARIABLE, "").lower()
    if name and name not in LEVELS:
        raise DeepZigError(f"no log level is called {name!r}", VARIABLE, f"choose from {', '.join(LEVELS)}")
    if not name and not command:
        return
    logger = logging.getLogger("deepzig")
    logger.setLevel(LEVELS[name or "warning"])
    ours = any(isinstance(handler, Stderr) for handler in logger.handlers)
    if not ours and (command or not logger.hasHandlers()):
        logger.addHandler(Stderr())
