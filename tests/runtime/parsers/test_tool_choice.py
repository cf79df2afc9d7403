"""Calls that are forced, or let be: tokens drawn at random make calls that the parser reads and the schemas accept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from deepzig.errors import DeepZigError
from deepzig.runtime.guide import GuideFactory, allows
from deepzig.runtime.parsers import FORMATS, parser_for, tool_guide
from deepzig.runtime.parsers.formats import Mark
from deepzig.runtime.tokenizer import Tokenizer

from ..walk import Walker
from .answers import TOOLS, VOCAB, WEATHER, Read, function, pieces, read, tokenizer

EOS = 1
SCHEMAS = {"get_weather": WEATHER["function"]["parameters"], "now": {"type": "object", "maxProperties": 0}}  # type: ignore[index]
NAMED = {"type": "function", "function": {"name": "get_weather"}}


@pytest.fixture(scope="module", params=FORMATS)
def format(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def made(format: str, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return tokenizer(tmp_path_factory.mktemp(format), format)


@pytest.fixture(scope="module")
def factory(made: Tokenizer) -> GuideFactory:
    return GuideFactory(made, VOCAB, [EOS])


def drawn(
    made: Tokenizer, factory: GuideFactory, seed: int, choice: Any, parallel: bool = True, closed: str = ""
) -> Read:
    """What a random answer says."""
    prompt = made.encode(closed)
    parser = parser_for(made, TOOLS, prompt)
    spec = tool_guide(parser, TOOLS, choice, parallel)
    assert spec is not None
    guide = factory.guide(spec, parser.armed_after, parser.opened_by)
    tokens = Walker(made, VOCAB, EOS).walk(guide, np.random.default_rng(seed), 4 * seed)
    return read(parser, pieces(made, tokens))


@pytest.mark.parametrize("choice", ["required", NAMED, "auto"])
def test_random_answers(choice: Any, made: Tokenizer, factory: GuideFactory) -> None:
    """The prompt has closed the reasoning, so that a random walk need not."""
    seen = set()
    for seed in range(12):
        found = drawn(made, factory, seed, choice, closed="</think>")
        seen.add(len(found.calls))
        for _, name, arguments in found.calls:
            jsonschema.validate(json.loads(arguments), SCHEMAS[name])
        if choice != "auto":
            assert found.calls and not found.content and not found.reasoning
        if choice is NAMED:
            assert [name for _, name, _ in found.calls] == ["get_weather"]
    assert choice != "required" or max(seen) > 1


def test_one_call_only(made: Tokenizer, factory: GuideFactory) -> None:
    assert {
        len(drawn(made, factory, seed, "required", parallel=False, closed="</think>").calls) for seed in range(9)
    } == {1}


@pytest.mark.parametrize("text", ["", "I look.\n"])
def test_what_the_parser_reads_is_allowed(text: str, format: str, made: Tokenizer, factory: GuideFactory) -> None:
    """A whole answer as the model writes it; and not with arguments that do not fit."""
    form = FORMATS[format]
    marks = form.marks
    parser = parser_for(made, TOOLS, made.encode("<think>"))
    for city, days, fits in (("Oslo", 3, True), ("Oslo", 30, False), ("Constantinople", 3, False)):
        calls = []
        for name, arguments in (("get_weather", json.dumps({"city": city, "days": days})), ("now", "{}")):
            head = form.before + ("7" if form.numbered else "") + marks[Mark.SEPARATOR] + form.after
            calls.append(marks[Mark.CALL] + head.format(name=name) + arguments + form.closing + marks[Mark.END_CALL])
        answer = f"Hm.</think>{text}{marks[Mark.SECTION]}{form.between.join(calls)}{marks[Mark.END_SECTION]}"
        for choice in ("auto", "required"):
            spec = tool_guide(parser, TOOLS, choice)
            assert spec is not None
            tokens = made.encode(answer, special=False)
            masks = factory.guide(spec, parser.armed_after).masks([*tokens, EOS])
            whole = len(masks) == len(tokens) + 1 and allows(masks[-1], EOS)
            assert whole == (fits and (choice == "auto" or not text))


def test_text_alone(made: Tokenizer, factory: GuideFactory) -> None:
    """With `auto` an answer may be text; marks are allowed in their places only."""
    parser = parser_for(made, TOOLS, made.encode("</think>"))
    spec = tool_guide(parser, TOOLS)
    assert spec is not None
    tokens = made.encode("No. Just\n\ntext, 日本.", special=False)
    masks = factory.guide(spec).masks([*tokens, EOS])
    assert len(masks) == len(tokens) + 1
    for mask in masks:
        assert [mark for mark, token in parser.ids.items() if allows(mask, token)] in ([Mark.SECTION], [])
        assert allows(mask, EOS) or mask is not masks[-1]


def test_nothing_to_guide(made: Tokenizer) -> None:
    parser = parser_for(made, TOOLS)
    assert tool_guide(parser, TOOLS, "none") is None and tool_guide(parser, []) is None


FUNCTION = 'give {"type": "function", "function": {"name": ..., "parameters": ...}}'
FORMAT = "name its format with the option parser, or leave tool_choice out"
REFUSED: list[tuple[Any, Any, str, str, str]] = [
    (["now"], "auto", "tool 0 is no function with a name", "tools", FUNCTION),
    ([WEATHER, {"function": {"name": ""}}], "auto", "tool 1 is no function with a name", "tools", FUNCTION),
    ([function("two words")], "auto", "tool 0 is no function with a name", "tools", FUNCTION),
    (
        [{"function": {"name": "f", "parameters": 5}}], "auto", "the JSON schema is no object", "tools, function f",
        "give an object, such as {'type': 'object'}",
    ),
    (TOOLS, "any", "tool_choice is 'any'", "tool_choice", "choose from none, auto, required, or name a function"),
    (TOOLS, 5, "tool_choice is 5", "tool_choice", "choose from none, auto, required, or name a function"),
    (TOOLS, {"function": {"name": "f"}}, "no tool is called 'f'", "tool_choice", "choose from get_weather, now"),
    (TOOLS, {"name": "f"}, "no tool is called None", "tool_choice", "choose from get_weather, now"),
    ([], NAMED, "no tool is called 'get_weather'", "tool_choice", "give tools"),
    ([], "required", "tool_choice is 'required' without tools", "tool_choice", "give tools"),
    (TOOLS, "required", "the model is not known to call tools", "tool_choice", FORMAT),
]  # fmt: skip


@pytest.mark.parametrize(("tools", "choice", "what", "where", "hint"), REFUSED, ids=[r[2] for r in REFUSED])
def test_refused(tools: Any, choice: Any, what: str, where: str, hint: str, tmp_path: Path) -> None:
    parser = parser_for(Tokenizer(tmp_path), TOOLS)
    with pytest.raises(DeepZigError) as caught:
        tool_guide(parser, tools, choice)
    assert str(caught.value) == f"{what}\n  at: option {where}\n  fix: {hint}"


def test_parameters_that_can_not_be_guided(made: Tokenizer, factory: GuideFactory) -> None:
    tools = [function("f", {"type": "object", "uniqueItems": True})]
    spec = tool_guide(parser_for(made, tools), tools, "required")
    assert spec is not None
    with pytest.raises(DeepZigError) as caught:
        factory.guide(spec, where="option tools")
    assert "option tools" in str(caught.value) and 'Unimplemented keys: ["uniqueItems"]' in str(caught.value)
