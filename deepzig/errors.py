"""The one exception that DeepZig raises on purpose."""

from __future__ import annotations

LONGEST = 6000
"""Characters of a line; a path has up to 4096."""


class DeepZigError(Exception):
    """Something the user can mend, told in three lines.

    Args:
        what: what went wrong, in one sentence.
        where: the file, tensor, field or option it went wrong at.
        hint: what to do about it.
    """

    def __init__(self, what: str, where: str, hint: str) -> None:
        super().__init__(what, where, hint)
        self.what = what
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        what, where, hint = map(_line, (self.what, self.where, self.hint))
        return f"{what}\n  at: {where}\n  fix: {hint}"


def _line(text: str) -> str:
    """One line of bounded length: names in files of others may hold line ends, commands to terminals, or megabytes."""
    if len(text) > LONGEST:
        text = f"{text[: LONGEST - 100]} ... {text[-90:]}"
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
