"""Whether the server answers: not while it loads its models, and no more when it is told to end."""

from __future__ import annotations

from .errors import INTERNAL, ApiError

OK, LOADING, DRAINING = "ok", "loading", "draining"

WAIT = {LOADING: "5", DRAINING: "10"}
"""Seconds after which a client may try again."""


class Health:
    """Where the server stands.

    Attributes:
        status: `loading`, `ok` or `draining`.
        under_way: requests that are being answered.
    """

    def __init__(self, status: str = OK) -> None:
        self.status = status
        self.under_way = 0

    def check(self) -> None:
        """Raises ApiError (503) unless requests are taken."""
        if self.status != OK:
            headers = {"Retry-After": WAIT[self.status]}
            raise ApiError(503, f"the server is {self.status}", INTERNAL, code=self.status, headers=headers)
