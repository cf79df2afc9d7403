"""Checks of a stranger's JSON that name the field which is wrong."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from deepzig.errors import DeepZigError

MEND = "compile the model again"
LARGEST = (1 << 53) - 1
"""The largest number that every reader of JSON reads exactly (RFC 8259, section 6)."""


def parse(text: str, where: str) -> Any:
    """The value of a manifest's text.

    Raises:
        DeepZigError: not JSON, or not what all readers would read alike.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({k for k, _ in pairs}) < len(pairs):
            raise DeepZigError("the manifest names a key twice", where, MEND)
        return dict(pairs)

    try:
        data = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError):
        raise DeepZigError("the manifest is not JSON", where, MEND) from None
    try:
        json.dumps(data, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        raise DeepZigError("the manifest has a text that is not Unicode", where, MEND) from None
    except (ValueError, RecursionError):
        raise DeepZigError("the manifest has a number that is not finite", where, MEND) from None
    return data


@dataclass(frozen=True)
class FileEntry:
    """Size in bytes and SHA-256 of a file."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Fields:
    """Checks of the values of a manifest's fields; `where` is the manifest."""

    where: str

    def fail(self, field: str, what: str) -> DeepZigError:
        """The error that a field is wrong."""
        return DeepZigError(f"the manifest's {field} {what}", self.where, MEND)

    def object(self, value: Any, field: str) -> dict[str, Any]:
        """An object."""
        if not isinstance(value, dict):
            raise self.fail(field, "is not an object")
        return value

    def list(self, value: Any, field: str) -> list[Any]:
        """A list."""
        if not isinstance(value, list):
            raise self.fail(field, "is not a list")
        return value

    def text(self, value: Any, field: str) -> str:
        """A text."""
        if not isinstance(value, str):
            raise self.fail(field, "is not a text")
        return value

    def name(self, value: Any, field: str) -> str:
        """A text with something in it."""
        if not self.text(value, field):
            raise self.fail(field, "is empty")
        return value

    def texts(self, value: Any, field: str) -> tuple[str, ...]:
        """A list of texts."""
        return tuple(self.text(v, field) for v in self.list(value, field))

    def count(self, value: Any, field: str, least: int = 0, most: int = LARGEST) -> int:
        """A whole number within limits."""
        if type(value) is not int or value < least:
            raise self.fail(field, f"is not a whole number from {least}")
        if value > most:
            raise self.fail(field, f"is larger than {most}")
        return value

    def file(self, value: Any, field: str) -> FileEntry:
        """What is known of a file."""
        data = self.object(value, field)
        digest = self.text(data.get("sha256"), f"{field} sha256")
        if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
            raise self.fail(field, "has no SHA-256")
        return FileEntry(self.count(data.get("size"), f"{field} size"), digest)

    def unique(self, names: Iterable[str], field: str) -> None:
        """Refuse a name that is there twice."""
        seen: set[str] = set()
        for name in names:
            if name in seen:
                raise self.fail(field, f"name {name} twice")
            seen.add(name)
