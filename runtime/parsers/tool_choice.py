"""Grammars in which a model can only call tools, in its own format, with arguments that fit."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from deepzig.errors import DeepZigError
from deepzig.runtime.structured import StructuredOutputs, schema_text

from .formats import Format, Mark
from .parser import Parser

TOOLS, CHOICE = "option tools", "option tool_choice"
CHOICES = ("none", "auto", "required")
NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}


def tool_guide(
    parser: Parser, tools: Sequence[Mapping[str, Any]], tool_choice: Any = "auto", parallel: bool = True
) -> StructuredOutputs | None:
    """What an answer has to be that calls tools.

    It is for `GuideFactory.guide`, with `armed_after` and `opened_by` of the parser.

    Args:
        parser: of the answer.
        tools: functions as OpenAI's API has them, each with a JSON schema of its arguments.
        tool_choice: `required` for calls and nothing else, `auto` for text that calls may follow, `none`; or the one
            function to call, as `{"type": "function", "function": {"name": "f"}}`.
        parallel: whether there may be several calls.

    Returns:
        None where anything goes: `none`, and `auto` without tools.

    Raises:
        DeepZigError: a tool or a choice that does not fit, or a model that has no format for calls.
    """
    functions = dict(_function(number, tool) for number, tool in enumerate(tools))
    chosen = _chosen(tool_choice, functions)
    if tool_choice == "none" or (tool_choice == "auto" and not functions):
        return None
    if parser.format is None:
        hint = "name its format with the option parser, or leave tool_choice out"
        raise DeepZigError("the model is not known to call tools", CHOICE, hint)
    lines = _rules(parser.format, parser.ids, chosen, parallel and not isinstance(tool_choice, Mapping))
    start = "TEXT calls?" if tool_choice == "auto" else "calls"
    return StructuredOutputs("grammar", "\n".join([f"start: {start}", r"TEXT: /(.|\n)*/", *lines]))


def _rules(format: Format, ids: Mapping[Mark, int], functions: Mapping[str, str], several: bool) -> list[str]:
    """Lines of Lark: `calls`, and what it is made of."""
    token = {mark: f"<[{number}]>" for mark, number in ids.items()}
    between = f"{_literal(format.between)}?" if format.between else ""
    more = f"({between} call)*" if several else ""
    lines = [
        f"calls: {token[Mark.SECTION]} call {more} {token[Mark.END_SECTION]}",
        f"call: {token[Mark.CALL]} ({' | '.join(f'call{i}' for i in range(len(functions)))}) {token[Mark.END_CALL]}",
        "NUMBER: /[0-9]{1,4}/",
    ]
    for i, (name, schema) in enumerate(functions.items()):
        before, after, closing = (
            _literal(text.replace("{name}", name)) for text in (format.before, format.after, format.closing)
        )
        number = "NUMBER" if format.numbered else ""
        lines.append(f"call{i}: {before} {number} {token[Mark.SEPARATOR]} {after} arguments{i} {closing}")
        lines.append(f"arguments{i}: %json {schema}")
    return lines


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if text else ""


def _function(number: int, tool: Any) -> tuple[str, str]:
    """Name of a function, and the schema of its arguments as llguidance reads it."""
    function = tool.get("function") if isinstance(tool, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(name, str) or not name or any(map(str.isspace, name)):
        hint = 'give {"type": "function", "function": {"name": ..., "parameters": ...}}'
        raise DeepZigError(f"tool {number} is no function with a name", TOOLS, hint)
    parameters = function.get("parameters")
    return name, schema_text(NO_PARAMETERS if parameters is None else parameters, f"{TOOLS}, function {name}")


def _chosen(choice: Any, functions: Mapping[str, str]) -> Mapping[str, str]:
    """The functions that may be called."""
    if isinstance(choice, Mapping):
        named = choice.get("function")
        name = named.get("name") if isinstance(named, Mapping) else None
        if not isinstance(name, str) or name not in functions:
            hint = f"choose from {', '.join(functions)}" if functions else "give tools"
            raise DeepZigError(f"no tool is called {name!r}", CHOICE, hint)
        return {name: functions[name]}
    if choice not in CHOICES:
        hint = f"choose from {', '.join(CHOICES)}, or name a function"
        raise DeepZigError(f"tool_choice is {choice!r}", CHOICE, hint)
    if choice == "required" and not functions:
        raise DeepZigError("tool_choice is 'required' without tools", CHOICE, "give tools")
    return functions
