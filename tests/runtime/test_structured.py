"""What structure can be asked for: checks that need no llguidance."""

from __future__ import annotations

import json
from typing import Any

import pytest

from deepzig.errors import DeepZigError
from deepzig.runtime.structured import MAX_LEVELS, StructuredOutputs, levels, schema_text

KINDS = "json, json_object, regex, choice, grammar"
ONE = f"give exactly one of {KINDS}"
JSON = "give what JSON can hold"
TEXT = "give a text that is not empty"
CHOICE = "give a list of texts, none of them empty"
PATTERN = "give a regular expression, and beside json or json_object only"
DEEP = "the JSON schema is too deep"
SHALLOWER = "give one with fewer levels or references"
LET_THROUGH = "the JSON schema has an exclusive bound that llguidance would let through"
WIDER = "give a range that reaches past a whole number, or minimum and maximum"


def nested(count: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(count):
        schema = {"items": schema}
    return schema


CIRCLE: dict[str, Any] = {}
CIRCLE["items"] = CIRCLE

REFUSED: list[tuple[Any, str, str]] = [
    (5, "structured_outputs is 5", f"give a mapping with one of {KINDS}"),
    ("json", "structured_outputs is 'json'", f"give a mapping with one of {KINDS}"),
    ({}, "structured_outputs has nothing that is known", ONE),
    ({"json": None}, "structured_outputs has nothing that is known", ONE),
    ({"whitespace_pattern": " "}, "structured_outputs has nothing that is known", ONE),
    ({"regex": "a", "choice": ["a"]}, "structured_outputs has regex and choice", ONE),
    ({"jsn": {}}, "structured_outputs has 'jsn'", f"choose from {KINDS}, whitespace_pattern"),
    ({"json": [1]}, "the JSON schema is no object", "give an object, such as {'type': 'object'}"),
    ({"json": False}, "the JSON schema is no object", "give an object, such as {'type': 'object'}"),
    (
        {"json": "{"},
        "the JSON schema is no JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)",
        JSON,
    ),
    ({"json": {"a": {1}}}, "the JSON schema is no JSON: Object of type set is not JSON serializable", JSON),
    ({"json": CIRCLE}, "the JSON schema is no JSON: Circular reference detected", JSON),
    ({"json": "[" * 9999}, DEEP, SHALLOWER),
    ({"json": nested(9999)}, DEEP, SHALLOWER),
    ({"json": {"a": {"minimum": 0.5, "exclusiveMaximum": 0, "exclusiveMinimum": -0.5}}}, LET_THROUGH, WIDER),
    ({"json": {"a": [{"exclusiveMinimum": 3, "maximum": 3.5}]}}, LET_THROUGH, WIDER),
    ({"json_object": False}, "json_object is False", "give true, or leave it out"),
    ({"json_object": 1}, "json_object is 1", "give true, or leave it out"),
    ({"regex": ""}, "regex is ''", TEXT),
    ({"regex": "\ud800"}, "regex is '\\ud800'", TEXT),
    ({"grammar": ["a"]}, "grammar is ['a']", TEXT),
    ({"choice": "ab"}, "choice is 'ab'", CHOICE),
    ({"choice": []}, "choice is []", CHOICE),
    ({"choice": ["a", ""]}, "choice is ['a', '']", CHOICE),
    ({"json": {}, "whitespace_pattern": 1}, "whitespace_pattern is 1", PATTERN),
    ({"regex": "a", "whitespace_pattern": " "}, "whitespace_pattern is ' '", PATTERN),
    ({"regex": "a" * 65537}, "regex has 65537 characters", "give at most 65536"),
    ({"choice": ["a" * 9] * 44000}, "choice has 572000 characters", "give at most 524288"),
]


@pytest.mark.parametrize(("value", "what", "hint"), REFUSED, ids=[r[1][:50] for r in REFUSED])
def test_refused(value: Any, what: str, hint: str) -> None:
    with pytest.raises(DeepZigError) as caught:
        StructuredOutputs.parse(value)
    assert str(caught.value) == f"{what}\n  at: option structured_outputs\n  fix: {hint}"


def test_numbers_that_json_has_not() -> None:
    with pytest.raises(
        DeepZigError, match=r"^the JSON schema is no JSON: Out of range float values are not JSON compliant"
    ):
        StructuredOutputs.parse({"json": '{"minimum": NaN}'})


def test_too_many_references() -> None:
    """Each may be written out once: 5 levels with 3,999 references are as deep as is allowed."""
    defs = {f"a{i}": {"items": [{"$ref": f"#/$defs/a{i + 1}"}]} for i in range(3999)}
    schema = {"$defs": defs}
    assert levels(schema) == 5 * 4000 == MAX_LEVELS
    assert json.loads(schema_text(schema))["$defs"] == defs
    with pytest.raises(DeepZigError) as caught:
        schema_text({"$defs": {**defs, "a": {"$ref": "#"}}}, "tool f")
    assert str(caught.value) == f"{DEEP}\n  at: tool f\n  fix: {SHALLOWER}"


def test_what_is_understood() -> None:
    """Forms that mean the same are equal; nothing is understood twice."""
    schema = {"type": "object", "properties": {"b": {}, "a": {"minimum": 0, "maximum": 0.5}}}
    one, other = (StructuredOutputs.parse({"json": s, "regex": None}) for s in (schema, json.dumps(schema)))
    assert one == other and hash(one) == hash(other) and one.kind == "json"
    assert StructuredOutputs.parse(one) is one
    known = json.loads(one.text)
    settings = known.pop("x-guidance")
    assert known == schema and list(known["properties"]) == ["b", "a"]
    assert settings == {"whitespace_pattern": r"[ \n\r\t]{0,100}", "json_allowed_escapes": '"\\bfnrt'}
    assert StructuredOutputs.parse({"json_object": True}) == StructuredOutputs.parse({"json": {"type": "object"}})
    spaces = StructuredOutputs.parse({"json": True, "whitespace_pattern": " ?"})
    assert json.loads(spaces.text)["x-guidance"]["whitespace_pattern"] == " ?"
    assert StructuredOutputs.parse({"choice": ("é", "b")}) == StructuredOutputs("choice", '["\\u00e9", "b"]')
    assert StructuredOutputs.parse({"regex": "a"}) == StructuredOutputs("regex", "a")
    assert StructuredOutputs.parse({"grammar": "start:"}) == StructuredOutputs("grammar", "start:")


@pytest.mark.parametrize("control", ["\x00", "\x1f", "\x7f", r"\x1F", r"[^\u0000-\u001f]", r"\cA"])
def test_control_characters(control: str) -> None:
    """They have no other escape than `u`: it is allowed where a schema has them, and only there."""
    allowed = [
        json.loads(schema_text({"pattern": f"a{c}"}))["x-guidance"]["json_allowed_escapes"] for c in (control, "\n")
    ]
    assert allowed == ['"\\bfnrtu', '"\\bfnrt']
