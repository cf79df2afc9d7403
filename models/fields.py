"""JSON objects read field by field, with errors that name the file and the field."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepzig.errors import DeepZigError

MEND = "correct config.json"

MAX_SIZE = 2**31 - 1
"""Positions, rows and ids are int32."""


@dataclass(frozen=True)
class Fields:
    """The JSON object of a config, read with checks that name the field."""

    data: Mapping[str, Any]
    source: str

    def fail(self, name: str, what: str, hint: str = MEND) -> DeepZigError:
        """The error for a field."""
        return DeepZigError(what, f"{self.source}, field {name}", hint)

    def with_defaults(self, **values: Any) -> Fields:
        """The same fields, with these values where one is absent; a null stays: the model has no such thing."""
        return Fields({**values, **self.data}, self.source)

    def with_values(self, **values: Any) -> Fields:
        """The same fields, with these values whatever the file says."""
        return Fields({**self.data, **values}, self.source)

    def integer(self, name: str, default: int | None = None, least: int = 1) -> int:
        """A whole number of at least `least`; required if there is no default."""
        value = self.data.get(name)
        if value is None:
            value = default
        if value is None:
            raise self.fail(name, "the field is missing")
        if type(value) is not int or value < least:
            raise self.fail(name, f"{value!r} is not a whole number from {least}")
        if value > MAX_SIZE:
            raise self.fail(name, f"{value} is above {MAX_SIZE}")
        return value

    def number(self, name: str, default: float | None = None, least: float = 0.0) -> float:
        """A finite number greater than `least`."""
        value = self.data.get(name)
        if value is None:
            value = default
        if value is None:
            raise self.fail(name, "the field is missing")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not least < value <= sys.float_info.max:
            raise self.fail(name, f"{value!r} is not a number above {least:g}")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self.data.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.fail(name, f"{value!r} is neither true nor false")
        return value

    def only(self, name: str, allowed: Any, why: str) -> None:
        """Refuse any value but `allowed`, if the field is there."""
        value = self.data.get(name, allowed)
        if value is not None and value != allowed:
            raise self.fail(name, f"{value!r} is not supported: {why}", f"use a model with {name} {allowed!r}")

    def choice(self, name: str, allowed: Collection[str], default: str) -> str:
        """One of the words `allowed`."""
        value = self.data.get(name)
        if value is None:
            return default
        if not isinstance(value, str) or value not in allowed:
            raise self.fail(name, f"{value!r} is not supported", f"use a model with one of {', '.join(allowed)}")
        return value

    def ids(self, name: str) -> tuple[int, ...]:
        """A token id, a list of them, or nothing."""
        value = self.data.get(name)
        many = value if isinstance(value, list) else [] if value is None else [value]
        if any(type(v) is not int or v < 0 for v in many):
            raise self.fail(name, f"{value!r} is neither a token id nor a list of them")
        return tuple(many)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        DeepZigError: no such file, or not a JSON object.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DeepZigError(
            f"the file can't be read: {error.strerror}", str(path), "name a Hugging Face checkpoint folder"
        ) from None
    except (ValueError, RecursionError) as error:
        why = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise DeepZigError(f"the file is not JSON: {why}", str(path), "download or write the file again") from None
    if not isinstance(data, dict):
        raise DeepZigError("the file is not a JSON object", str(path), "download or write the file again")
    return data
