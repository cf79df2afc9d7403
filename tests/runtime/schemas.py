"""JSON schemas in great variety: a generator, and a list of nasty ones."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import numpy as np

Schema = dict[str, Any]

NAMES = [
    "name", "id", "a", "b c", "", " ", "ключ", "日本語", "é", "e\u0301", "😀", 'quo"te', "back\\slash", "new\nline",
    "a/b", "~0", "x-y", "__proto__", "0", "\u2028", "type", "properties", "$ref", "$defs", "x-guidance", "<｜User｜>",
    "%", "{{",
]  # fmt: skip
PATTERNS = [
    "^[a-z]{2,5}$", r"^\d{3}-\d{4}$", "b+c", "^(foo|bar)[0-9]*$", "^ü[äö]*ß$", r"^[^@\s]+@[^@\s]+\.[a-z]{2,3}$", "^$",
    r'^[^"\\]{1,8}$', "x|y", "^日本(語)?$", r"^[A-Z]\w{0,9}$", "^[+-]?[0-9]{1,9}$", "[^a]b$", "^😀{2}$",
    r"^\$\{[a-z]+\}$",
]  # fmt: skip
FORMATS = ["date-time", "date", "time", "email", "ipv4", "ipv6", "uuid", "hostname", "duration", "uri"]


class Generator:
    """Random schemas that something fits, by seed."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng([seed, 10])
        self.defs: list[str] = []

    def pick(self, items: Any) -> Any:
        return items[int(self.rng.integers(len(items)))]

    def whole(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high + 1))

    def chance(self, p: float) -> bool:
        return bool(self.rng.random() < p)

    def root(self) -> Schema:
        """A schema; one in two has definitions, one in two of them a tree that holds itself."""
        if not self.chance(0.5):
            return self.schema(0)
        defs = {name: self.schema(2) for name in ("first", "second/third~", "vierte é")[: self.whole(1, 3)]}
        self.defs = ["#/$defs/" + quote(name.replace("~", "~0").replace("/", "~1"), safe="~") for name in defs]
        if self.chance(0.5):
            more = {"type": "array", "items": {"$ref": "#/$defs/tree"}, "maxItems": self.whole(1, 3)}
            value = {"$ref": self.pick(self.defs)}
            defs["tree"] = {"type": "object", "properties": {"value": value, "children": more}, "required": ["value"]}
            self.defs.append("#/$defs/tree")
        return {**self.object(0), "$defs": defs}

    def schema(self, depth: int) -> Schema:
        """Deeper ones are simpler."""
        kinds = [self.string, self.integer, self.number, self.literal]
        if depth < 3:
            kinds += [self.object, self.object, self.array, self.array, self.any_of, self.nullable]
        if self.defs:
            kinds.append(lambda _: {"$ref": self.pick(self.defs)})
        schema = self.pick(kinds)(depth)
        if self.chance(0.2):
            schema |= self.pick(
                [{"title": "Ein Titel"}, {"description": 'says "what"'}, {"default": None}, {"examples": [1]}]
            )
        return schema

    def object(self, depth: int) -> Schema:
        names = sorted({self.pick(NAMES) for _ in range(self.whole(0, 5))})
        self.rng.shuffle(names)
        schema: Schema = {"type": "object", "properties": {name: self.schema(depth + 1) for name in names}}
        if names:
            schema["required"] = names[: self.whole(0, len(names))]
        if self.chance(0.7):
            schema["additionalProperties"] = self.pick([False, False, True, self.schema(depth + 2)])
        return schema

    def array(self, depth: int) -> Schema:
        schema: Schema = {"type": "array", "items": self.schema(depth + 1)}
        if self.chance(0.5):
            schema["minItems"] = self.whole(0, 3)
            schema["maxItems"] = schema["minItems"] + self.whole(0, 3)
        if self.chance(0.2):
            schema["prefixItems"] = [self.schema(depth + 1) for _ in range(self.whole(1, 2))]
        return schema

    def string(self, _: int) -> Schema:
        kind = self.whole(0, 3)
        if kind == 0:
            return {"type": "string", "pattern": self.pick(PATTERNS)}
        if kind == 1:
            return {"type": "string", "format": self.pick(FORMATS)}
        low = self.whole(0, 5)
        return {"type": "string", **({"minLength": low, "maxLength": low + self.whole(0, 20)} if kind == 2 else {})}

    def integer(self, _: int) -> Schema:
        low = self.whole(-1200, 1200)
        bounds = [
            {}, {"minimum": low}, {"maximum": low}, {"minimum": low, "maximum": low + self.whole(0, 3000)},
            {"exclusiveMinimum": low, "exclusiveMaximum": low + self.whole(2, 40)}, {"multipleOf": self.whole(1, 12)},
        ]  # fmt: skip
        return {"type": "integer", **self.pick(bounds)}

    def number(self, _: int) -> Schema:
        low = round(float(self.rng.normal(0, 50)), self.whole(0, 3))
        bounds = [
            {}, {"minimum": low}, {"exclusiveMaximum": low}, {"minimum": low, "maximum": low + self.whole(0, 9)},
            {"exclusiveMinimum": low, "maximum": low + 1.5},
        ]  # fmt: skip
        return {"type": "number", **self.pick(bounds)}

    def literal(self, _: int) -> Schema:
        values = [
            "yes",
            "ja",
            "",
            "日本",
            'q"',
            "\\",
            "\n",
            0,
            -1.5,
            1e-5,
            True,
            None,
            [1, "a"],
            {"k": [None]},
            "<｜User｜>",
        ]
        self.rng.shuffle(values)
        return self.pick(
            [{"enum": values[: self.whole(1, 6)]}, {"const": values[0]}, {"type": self.pick(["boolean", "null"])}]
        )

    def any_of(self, depth: int) -> Schema:
        return {"anyOf": [self.schema(depth + 1) for _ in range(self.whole(1, 3))]}

    def nullable(self, _: int) -> Schema:
        kinds = ["string", "integer", "number", "boolean", "array", "object"]
        self.rng.shuffle(kinds)
        return {"type": [*kinds[: self.whole(1, 3)], "null"]}


OPEN: Schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": {"type": "string"}}

NASTY: list[Schema] = [
    {},
    {"type": "object"},
    {"type": "object", "additionalProperties": False},
    {"type": "object", "properties": {}, "required": ["not among them"]},
    {"$ref": "#/$defs/a", "$defs": {"a": {"type": ["array", "null"], "items": {"$ref": "#/$defs/a"}}}},
    {"type": "object", "properties": {"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}, "required": ["next"]},
    {"$defs": {"x": {"$anchor": "here", "const": 7}}, "$ref": "#here"},
    {"definitions": {"old": {"type": "integer"}}, "properties": {"n": {"$ref": "#/definitions/old"}}, "type": "object"},
    {"properties": {"a": {"type": "integer"}}, "required": ["a"]},
    {"allOf": [{"type": "object", "properties": {"a": {"const": 1}}}, {"required": ["a"]}]},
    {"allOf": [{"type": "string", "pattern": "a"}, {"type": "string", "pattern": "b"}, {"minLength": 4}]},
    {"allOf": [{"minimum": 3}, {"maximum": 5}], "type": "integer"},
    {"anyOf": [{"type": "string", "maxLength": 2}, {"type": "string", "minLength": 2}]},
    {"oneOf": [{"type": "string"}, {"type": "integer"}, {"type": "null"}]},
    {"type": "integer", "minimum": 7, "maximum": 7},
    {"type": "integer", "exclusiveMinimum": -1, "exclusiveMaximum": 1},
    {"type": "integer", "minimum": -(2**62), "maximum": 2**62},
    {"type": "integer", "multipleOf": 7, "minimum": 10, "maximum": 20},
    {"type": "number", "minimum": 0.1, "maximum": 0.1},
    {"type": "number", "minimum": -0.0, "exclusiveMaximum": 1e-7},
    {"type": "number", "minimum": 0.5, "exclusiveMaximum": 1},
    {"type": "number", "exclusiveMinimum": -1, "maximum": -0.5},
    {"type": "number", "multipleOf": 0.25, "minimum": -1, "maximum": 1},
    {"enum": [0, False, "", None, [], {}]},
    {"enum": [{"a": {"b": [1, 2, {"c": "é"}]}}, [[[]]]]},
    {"const": "\x00\x01\x1f\x7f"},
    {"const": "\b\f\n\r\t\"\\/\u2028\u2029\ufeff\ufffd"},
    {"const": "😀👩‍👩‍👧‍👦\U0010ffff"},
    {"enum": ["</think>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<think>"]},
    {"type": "string", "pattern": "^a[\\x01\\x02]b$"},
    {"type": "string", "pattern": "^[^\\x00-\\x1f]{1,4}$"},
    {"type": "string", "pattern": "^[^a]b$"},
    {"type": "string", "pattern": "^[\"\\\\/]{3}$"},
    {"type": "string", "pattern": "^(a|b)*a(a|b){12}$"},
    {"type": "string", "minLength": 3, "maxLength": 3},
    {"type": "string", "minLength": 2, "maxLength": 9, "pattern": "^[äöü]+$"},
    {"type": "array", "minItems": 4, "maxItems": 4, "items": {"type": "null"}},
    {"type": "array", "prefixItems": [{"const": 1}, {"const": "b"}], "items": False, "minItems": 2},
    {"type": "array", "items": {"type": "array", "items": {"type": "array", "items": {"type": "boolean"}}}},
    {"type": "array", "maxItems": 0},
    OPEN,
    {**OPEN, "required": ["a"], "patternProperties": {"^x": {"type": "boolean"}}, "additionalProperties": False},
    {**OPEN, "properties": {"a/b": {"const": 1}, "a\\b": {"const": 2}, '"': {"const": 3}}},
    {**OPEN, "properties": {"\u0001": {"type": "null"}}, "required": ["\u0001"], "additionalProperties": False},
    {"type": "object", "properties": {"type": {"const": "type"}, "enum": {"enum": ["enum"]}, "$ref": {"const": "#"}}},
    {"type": "object", "properties": {f"p{i}": {"type": "integer"} for i in range(60)}, "required": ["p59"]},
    {"type": "object", "additionalProperties": {"type": "object", "additionalProperties": {"type": "integer"}}},
    {"x-guidance": {"lenient": True, "item_separator": ";"}, "type": "array", "items": {"type": "integer"}},
    {"type": "array", "items": {"anyOf": [{"type": "integer"}, {"type": "number"}, {"const": "1"}]}, "maxItems": 3},
    {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": "https://x.y/z", "type": "null"},
]  # fmt: skip
"""Schemas that generators, grammars and JSON itself trip over."""


def deep(levels: int) -> Schema:
    schema: Schema = {"type": "integer"}
    for i in range(levels):
        schema = (
            {"type": "object", "properties": {"a": schema}, "required": ["a"]}
            if i % 2
            else {"type": "array", "items": schema}
        )
    return schema


NASTY.append(deep(30))

COUNT = 300
"""The nasty ones and as many generated as make this number."""


def schema(number: int) -> Schema:
    """The schema of a number below COUNT."""
    return NASTY[number] if number < len(NASTY) else Generator(number).root()
