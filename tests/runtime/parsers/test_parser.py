"""Answers as models write them, and answers that they cut or muddle; whichever way their text is cut into pieces."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepzig.errors import DeepZigError
from deepzig.runtime.answer import Answer
from deepzig.runtime.parsers import FORMATS, Delta, Parser, parser_for
from deepzig.runtime.parsers.formats import Mark, format_for
from deepzig.runtime.sampling import SamplingOptions
from deepzig.runtime.tokenizer import Tokenizer

from .. import fake
from .answers import SIGNS, TOOLS, Read, pieces, read, tokenizer
from .examples import BEGIN, CALL, DONE, END, EXAMPLES, SEP


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    return {name: tokenizer(tmp_path_factory.mktemp(name), name) for name in FORMATS}


def numbered() -> Callable[[], str]:
    numbers = itertools.count()
    return lambda: f"id{next(numbers)}"


def read_text(tokenizer: Tokenizer, text: str, prompt: str = "", tools: Any = TOOLS) -> Read:
    parser = parser_for(tokenizer, tools, tokenizer.encode(prompt), new_id=numbered())
    return read(parser, pieces(tokenizer, tokenizer.encode(text, special=False)))


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples(name: str, tokenizers: dict[str, Tokenizer]) -> None:
    format, prompt, text, want = EXAMPLES[name]
    assert read_text(tokenizers[format], text, prompt) == want


@pytest.mark.parametrize("name", FORMATS)
def test_stop_texts_that_might_have_begun_before_a_mark(name: str, tokenizers: dict[str, Tokenizer]) -> None:
    """Text that was held back for them stays on its side of the mark, whether the mark has a text or not."""
    form, tokenizer = FORMATS[name], tokenizers[name]
    head = (form.before + ("0" if form.numbered else "") + form.marks[Mark.SEPARATOR] + form.after).format(name="now")
    ended = form.closing + form.marks[Mark.END_CALL] + form.marks[Mark.END_SECTION]
    text = "At once \n" + form.marks[Mark.SECTION] + form.marks[Mark.CALL] + head + '{"a": 1}' + ended
    tokens = tokenizer.encode(text, special=False)
    for stop in ([" \n\n"], ["1}0", "\n."], ['"a": 1}' + form.closing + "?"]):
        answer = Answer(SamplingOptions(stop=stop), (), len(tokens) + 1, tokenizer.decode)
        told = [(token, answer.push(token).text) for token in tokens]
        found = read(parser_for(tokenizer, TOOLS, new_id=numbered()), [*told, (-1, "")])
        assert (found.content, [call[1:] for call in found.calls]) == ("At once \n", [("now", '{"a": 1}')])


@pytest.mark.parametrize("name", FORMATS)
def test_as_it_comes(name: str, tokenizers: dict[str, Tokenizer]) -> None:
    """Nothing waits that can be told: arguments grow with every token, and the name is there before them."""
    form = FORMATS[name]
    head = (form.before + ("4" if form.numbered else "") + form.marks[Mark.SEPARATOR] + form.after).format(name="now")
    text = form.marks[Mark.SECTION] + form.marks[Mark.CALL] + head + '{"a": [10, 20, 30]}'
    parser = parser_for(tokenizers[name], TOOLS, new_id=numbered())
    said, called = "", []
    for token, piece in pieces(tokenizers[name], tokenizers[name].encode(text, special=False)):
        said += piece
        if token >= 0:
            called += [delta.call for delta in parser.push(token, piece) if delta.call]
            assert (said.partition("{")[1] + said.partition("{")[2]) == "".join(call.arguments for call in called)
    assert [call.name for call in called] == ["now"] + [None] * (len(called) - 1) and len(called) > 8


def test_without_tools_calls_are_text(tokenizers: dict[str, Tokenizer]) -> None:
    text = f"<think>a</think>b{BEGIN}{CALL}f{SEP}{{}}{DONE}{END}"
    for tools in (None, []):
        found = read_text(tokenizers["deepseek-v3.1"], text, tools=tools)
        assert found == Read(text.removeprefix("<think>a</think>"), "a")


def test_ids_are_new(tokenizers: dict[str, Tokenizer]) -> None:
    tokens = tokenizers["deepseek-v3.1"].encode(f"{CALL}f{SEP}{{}}{DONE}{CALL}f{SEP}{{}}{DONE}", special=False)
    parser = parser_for(tokenizers["deepseek-v3.1"], TOOLS)
    ids = [call[0] for call in read(parser, pieces(tokenizers["deepseek-v3.1"], tokens)).calls]
    assert len(set(ids)) == 2 and all(i.startswith("call_") and len(i) == 29 for i in ids)


def recut(stream: list[tuple[int, str]], hidden: set[int], rng: random.Random) -> Iterator[tuple[int, str]]:
    """The same tokens with text that comes later; but not after marks that have none."""
    late = ""
    for token, text in stream:
        late += text
        now = len(late) if token < 0 or token in hidden else rng.randint(0, len(late))
        yield token, late[:now]
        late = late[now:]


WORDS = [
    "a",
    " é",
    "日本",
    "😀",
    "\n",
    "```",
    "\n```",
    "\n```json\n",
    "function",
    '{"k": 1}',
    " ",
    "functions.f:0",
    "<",
    "f",
]


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_any_stream_however_it_is_cut(name: str, data: st.DataObject, tokenizers: dict[str, Tokenizer]) -> None:
    """Marks in any order: pieces make no difference, and no word is lost or told twice."""
    made, words = tokenizers[name], itertools.count()
    marks = [*FORMATS[name].marks.values(), "<think>", "</think>"]
    drawn = data.draw(st.lists(st.sampled_from([*marks, *WORDS, "word"]), max_size=30))
    parts = [f" w{next(words)}w " if part == "word" else part for part in drawn]
    tokens = [token for part in parts for token in made.encode(part, special=False)]
    prompt = made.encode("<think>") if data.draw(st.booleans()) else []

    def parser() -> Parser:
        return parser_for(made, TOOLS, prompt, new_id=lambda: "id")

    stream = list(pieces(made, tokens))
    found = read(parser(), stream)
    hidden = {token for token in parser().ids.values() if not made.decode([token])}
    assert read(parser(), recut(stream, hidden, data.draw(st.randoms(use_true_random=False)))) == found
    told = [found.content, found.reasoning, *(part for call in found.calls for part in call)]
    for part in parts:
        if part.startswith(" w"):
            # an id of Kimi's has the name in it
            assert sum(text.count(part.strip()) for text in told) in ((1, 2) if hidden else (1,)), part


DETECTED = [
    ("deepseek-v3", None, "deepseek-v3"),
    ("deepseek-v3.1", None, "deepseek-v3.1"),
    ("kimi-k2", None, "kimi-k2"),
    ("deepseek-v3", "{{ messages }}", "deepseek-v3"),  # a template that tells nothing
    ("kimi-k2", "{{ messages }}", "kimi-k2"),
    ("deepseek-v3", SIGNS["kimi-k2"], "deepseek-v3"),  # a template of another vocabulary
]


@pytest.mark.parametrize(("vocabulary", "template", "format"), DETECTED)
def test_detection(vocabulary: str, template: str | None, format: str, tmp_path: Path) -> None:
    made = tokenizer(tmp_path, vocabulary, template=template)
    assert format_for(made) is FORMATS[format] is format_for(made, format)
    assert format_for(made, "plain") is None
    assert (parser_for(made, TOOLS).format, parser_for(made).format) == (FORMATS[format], None)


def test_the_name_decides(tokenizers: dict[str, Tokenizer]) -> None:
    made = tokenizers["deepseek-v3"]
    text = f"{CALL}f{SEP}{{}}{DONE}"
    parser = parser_for(made, TOOLS, name="deepseek-v3.1", new_id=numbered())
    assert read(parser, pieces(made, made.encode(text, special=False))) == Read(calls=[("id0", "f", "{}")])
    assert read_text(made, text) == Read(text)


def test_a_model_that_marks_nothing(tmp_path: Path) -> None:
    fake.write_tokenizer(tmp_path)
    for made in (Tokenizer(tmp_path), Tokenizer(tmp_path / "none")):
        parser = parser_for(made, TOOLS, [1, 2, 3])
        assert (parser.ids, parser.format, parser.armed_after, parser.opened_by) == ({}, None, (), None)
        assert parser.push(7, "<think>") == [Delta(content="<think>")] and parser.finish("é") == [Delta(content="é")]


@pytest.mark.parametrize(
    ("prompt", "armed", "opened", "answer", "want"),
    [
        ("<｜Assistant｜><think>", True, False, "a</think>b", Read("b", "a")),
        ("<｜Assistant｜><think>\nSo I", True, False, "a</think>b", Read("b", "a")),  # reasoning that goes on
        ("<｜Assistant｜></think>", False, False, "b", Read("b")),
        ("<｜Assistant｜><think></think>", False, False, "b", Read("b")),
        ("<｜Assistant｜>", True, True, "<think>a</think>b", Read("b", "a")),
        ("<｜Assistant｜>", True, True, "\n <think>a</think>b", Read("b", "\n a")),
        ("<｜Assistant｜>", True, True, "b <think>", Read("b <think>")),
        ("What does <think> mean?<｜Assistant｜>", True, True, "b", Read("b")),  # a question is no opening
        ("What does </think> mean?<｜Assistant｜><think>", True, False, "a</think>b", Read("b", "a")),
        ("", True, True, " ", Read(" ")),
        ("", True, True, "</think>b", Read("b")),
    ],
)
def test_reasoning(
    prompt: str, armed: bool, opened: bool, answer: str, want: Read, tokenizers: dict[str, Tokenizer]
) -> None:
    made = tokenizers["deepseek-v3.1"]
    think, end = (made.token_id(text) for text in ("<think>", "</think>"))
    parser = parser_for(made, None, made.encode(prompt))
    assert parser.armed_after == ((end,) if armed else ()) and parser.opened_by == (think if opened else None)
    assert read(parser, pieces(made, made.encode(answer, special=False))) == want


NAMES = "choose from deepseek-v3, deepseek-v3.1, kimi-k2, plain"
GUESS = "leave the option out: the format is found by the model's tokens"


@pytest.mark.parametrize(
    ("name", "what", "hint"),
    [
        ("hermes", "no parser is called 'hermes'", NAMES),
        ("kimi-k2", "the vocabulary lacks the tokens of kimi-k2", GUESS),
    ],
)
def test_wrong_names(name: str, what: str, hint: str, tokenizers: dict[str, Tokenizer]) -> None:
    with pytest.raises(DeepZigError) as caught:
        parser_for(tokenizers["deepseek-v3"], TOOLS, name=name)
    assert str(caught.value) == f"{what}\n  at: option parser\n  fix: {hint}"
