"""The one exception that DeepZig raises on purpose."""

from __future__ import annotations


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
        return f"{self.what}\n  at: {self.where}\n  fix: {self.hint}"
