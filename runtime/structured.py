"""What structure an answer can be asked to have; nothing here needs llguidance."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from deepzig.errors import DeepZigError

OPTION = "option structured_outputs"

MAX_TEXT = {"json": 1 << 19, "regex": 1 << 16, "choice": 1 << 19, "grammar": 1 << 16}
"""The most characters of each kind. Compiling takes time in their number; a schema of 380 kB took 2 s."""

MAX_LEVELS = 20_000
"""The most levels of a schema with its references written out, by `levels`. llguidance compiles by recursion, takes up
to 4 kB of stack for a level, and crashes the process when there is no more (1.9.1, measured)."""

WHITESPACE = r"[ \n\r\t]{0,100}"
"""What may stand between the parts of JSON if nothing else is asked for: llguidance's own default has no end, and small
models find none either."""

ESCAPES = '"\\bfnrt'
"""The letters after a backslash in strings. `u` is left out where it can be: llguidance (1.9.1) does not see that a
name which is written with it is one of the schema's properties."""

CONTROL = re.compile(r"\x7f|\\(?:u00(?:[01]|7f)|x(?:[01]|7f)|c[@-_])", re.IGNORECASE)
"""Finds, in a schema as JSON, characters that are written with `u` only; in patterns too."""


@dataclass(frozen=True)
class StructuredOutputs:
    """What an answer has to be.

    Attributes:
        kind: `json`, `regex`, `choice` or `grammar`; `json_object` has become `json`.
        text: a JSON schema as JSON, a regular expression, a JSON list of texts, or a grammar in Lark's notation.
    """

    kind: str
    text: str

    @classmethod
    def parse(cls, value: Any) -> StructuredOutputs:
        """From what a caller gave: a mapping with exactly one of `json`, `json_object`, `regex`, `choice`, `grammar`.

        The names are those of vLLM. `json` is a schema, as JSON or as a mapping; `whitespace_pattern` may stand beside
        it or beside `json_object` and says what is written between the parts.

        Raises:
            DeepZigError: it is something else, or too large.
        """
        if isinstance(value, cls):
            return value
        if not isinstance(value, Mapping):
            raise _wrong(f"structured_outputs is {value!r}", f"give a mapping with one of {', '.join(KINDS)}")
        given = {name: item for name, item in value.items() if item is not None}
        if unknown := [name for name in given if name not in (*KINDS, PATTERN)]:
            raise _wrong(f"structured_outputs has {unknown[0]!r}", f"choose from {', '.join((*KINDS, PATTERN))}")
        kinds = [kind for kind in KINDS if kind in given]
        if len(kinds) != 1:
            what = f"structured_outputs has {' and '.join(kinds) if kinds else 'nothing that is known'}"
            raise _wrong(what, f"give exactly one of {', '.join(KINDS)}")
        pattern = given.get(PATTERN)
        if pattern is not None and (not isinstance(pattern, str) or kinds[0] not in ("json", "json_object")):
            raise _wrong(f"{PATTERN} is {pattern!r}", "give a regular expression, and beside json or json_object only")
        kind, text = KINDS[kinds[0]](given[kinds[0]], WHITESPACE if pattern is None else pattern)
        if len(text) > MAX_TEXT[kind]:
            raise _wrong(f"{kind} has {len(text)} characters", f"give at most {MAX_TEXT[kind]}")
        return cls(kind, text)


PATTERN = "whitespace_pattern"


def schema_text(schema: Any, where: str = OPTION, whitespace: str = WHITESPACE) -> str:
    """A JSON schema as llguidance reads it, with our settings in the place that it has for them.

    Args:
        schema: an object, or true, which allows everything; or JSON that holds one of them.
        where: what to name in errors.
        whitespace: a regular expression of what may stand between the parts.

    Raises:
        DeepZigError: it is no schema, or too deep.
    """
    try:
        known = json.loads(schema) if isinstance(schema, str) else schema
        known = {} if known is True else known
        if not isinstance(known, Mapping):
            raise DeepZigError("the JSON schema is no object", where, "give an object, such as {'type': 'object'}")
        escapes = ESCAPES + "u" * bool(CONTROL.search(json.dumps(known)))
        settings = {"whitespace_pattern": whitespace, "json_allowed_escapes": escapes}
        text = json.dumps({**known, "x-guidance": settings}, allow_nan=False)
        deep = levels(known) > MAX_LEVELS
        misread = next((part for _, part in _parts(known) if _is_misread(part)), None)
    except RecursionError:
        deep, misread, text = True, None, ""
    except (TypeError, ValueError) as error:
        raise DeepZigError(f"the JSON schema is no JSON: {error}", where, "give what JSON can hold") from None
    if deep:
        raise DeepZigError("the JSON schema is too deep", where, "give one with fewer levels or references")
    if misread is not None:
        what = "the JSON schema has an exclusive bound that llguidance would let through"
        raise DeepZigError(what, where, "give a range that reaches past a whole number, or minimum and maximum")
    return text


def levels(schema: Any) -> int:
    """A bound of how deep a schema is once references are followed: each is followed once, from the deepest place."""
    deepest, references = 0, set[str]()
    for depth, part in _parts(schema):
        deepest = max(deepest, depth)
        if isinstance(part, Mapping) and isinstance(part.get("$ref"), str):
            references.add(part["$ref"])
    return deepest * (1 + len(references))


def _parts(value: Any) -> Iterator[tuple[int, Any]]:
    """All objects and lists in it, with their depth from 1."""
    todo = [(1, value)]
    while todo:
        depth, part = todo.pop()
        yield depth, part
        inner = part.values() if isinstance(part, Mapping) else part
        todo += [(depth + 1, item) for item in inner if isinstance(item, Mapping | list | tuple)]


def _is_misread(part: Any) -> bool:
    """Whether it is a range from a whole number, itself excluded, away from 0 to less than the next one.

    llguidance (1.9.1) lets that whole number pass.
    """
    if not isinstance(part, Mapping):
        return False
    bounds = {name: part[name] for name in BOUNDS if type(part.get(name)) in (int, float)}
    for sign, near, far in ((1, "exclusiveMinimum", BOUNDS[2:]), (-1, "exclusiveMaximum", BOUNDS[:2])):
        bound = sign * bounds.get(near, -sign)
        ends = [sign * bounds[name] for name in far if name in bounds]
        if bound >= 0 and bound % 1 == 0 and any(end < bound + 1 for end in ends):
            return True
    return False


BOUNDS = ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum")


def _wrong(what: str, hint: str) -> DeepZigError:
    return DeepZigError(what, OPTION, hint)


def _json(value: Any, whitespace: str) -> tuple[str, str]:
    return "json", schema_text(value, whitespace=whitespace)


def _json_object(value: Any, whitespace: str) -> tuple[str, str]:
    if value is not True:
        raise _wrong(f"json_object is {value!r}", "give true, or leave it out")
    return _json({"type": "object"}, whitespace)


def _text(kind: str) -> Callable[[Any, str], tuple[str, str]]:
    def check(value: Any, _: str) -> tuple[str, str]:
        if not _is_text(value):
            raise _wrong(f"{kind} is {value!r}", "give a text that is not empty")
        return kind, value

    return check


def _choice(value: Any, _: str) -> tuple[str, str]:
    if not (isinstance(value, list | tuple) and value and all(map(_is_text, value))):
        raise _wrong(f"choice is {value!r}", "give a list of texts, none of them empty")
    return "choice", json.dumps(value)


def _is_text(value: Any) -> bool:
    """Whether it is a text with a meaning in UTF-8: halves of surrogate pairs have none."""
    return isinstance(value, str) and bool(value) and not any("\ud800" <= c <= "\udfff" for c in value)


KINDS: dict[str, Callable[[Any, str], tuple[str, str]]] = {
    "json": _json,
    "json_object": _json_object,
    "regex": _text("regex"),
    "choice": _choice,
    "grammar": _text("grammar"),
}
"""What the mapping may have -> its check, which gives the kind that it becomes and its text."""
