"""Answers that keep to a structure: a driver draws tokens at random among those that the masks allow."""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from deepzig.errors import DeepZigError
from deepzig.runtime.guide import Guide, GuideFactory, allows, apply
from deepzig.runtime.tokenizer import Tokenizer

from . import fake, schemas
from .walk import Walker

FOLDER = Path(__file__).parents[2] / "models" / "reference"
VOCAB, EOS = 530, 1
"""18 more logits than the tokenizer has tokens."""

FORMATS = jsonschema.FormatChecker(["date", "email", "ipv4", "ipv6", "regex", "uuid"])


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(FOLDER)


@pytest.fixture(scope="module")
def factory(tokenizer: Tokenizer) -> GuideFactory:
    return GuideFactory(tokenizer, VOCAB, [EOS])


@pytest.fixture(scope="module")
def walker(tokenizer: Tokenizer) -> Walker:
    return Walker(tokenizer, VOCAB, EOS)


def check_schema(number: int, factory: GuideFactory, walker: Walker, answers: int) -> None:
    schema = schemas.schema(number)
    validator = jsonschema.Draft202012Validator(schema, format_checker=FORMATS)
    validator.check_schema(schema)
    for answer in range(answers):
        rng = np.random.default_rng([number, answer])
        tokens = walker.walk(factory.guide({"json": schema}), rng, int(rng.integers(60)))
        text = walker.tokenizer.decode(tokens, skip_special=False)
        said = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
        errors = [error.message for error in validator.iter_errors(said)]
        assert not errors, f"schema {number} {schema}: {text}: {errors}"


@pytest.mark.parametrize("part", range(0, schemas.COUNT, 5))
def test_json_schemas(part: int, factory: GuideFactory, walker: Walker) -> None:
    """One in five, and once each; all of them in the slow tests."""
    check_schema(part, factory, walker, 1)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(schemas.COUNT))
def test_all_json_schemas(number: int, factory: GuideFactory, walker: Walker) -> None:
    check_schema(number, factory, walker, 5)


def said(factory: GuideFactory, tokenizer: Tokenizer, spec: dict[str, Any], text: str) -> bool:
    """Whether a text can be an answer, token by token."""
    guide = factory.guide(spec)
    for token in tokenizer.encode(text, special=False):
        if not allows(guide.masks()[0], token):
            return False
        guide.push(token)
    return guide.ended or allows(guide.masks()[0], EOS)


ANSWERS: list[tuple[dict[str, Any], list[str], list[str]]] = [
    ({"regex": "a+b?|é/\"'"}, ["a", "aab", "é/\"'"], ["", "b", "abb", "é"]),
    ({"regex": r"\p{Lu}\d{2}"}, ["Ä12", "A٣٤"], ["a12", "A1"]),
    (
        {"choice": ["yes", "yesterday", 'q"\\\n', "😀", "<｜User｜>"]},
        ["yes", "yesterday", 'q"\\\n', "😀"],
        ["ye", "no"],
    ),
    ({"grammar": 'start: "(" start ")" | "x"'}, ["x", "((x))"], ["(x", "()"]),
    ({"json_object": True}, ["{}", '{"a": [1, {"b": null}]}', '{\n  "a" : 1}'], ["[]", "1", '{"a":1,}', "{'a':1}"]),
    ({"json": True}, ["[]", "1", '"a"', "{}", "null"], ["nul", "{]"]),
    ({"json": '{"type": "integer"}'}, ["12"], ['"12"', "1.5"]),
    ({"json": {"type": "array"}, "whitespace_pattern": ""}, ["[1,2]"], ["[1, 2]"]),
    ({"json": {"type": "array"}, "whitespace_pattern": "[ ]{0,2}"}, ["[1,  2]"], ["[1,   2]", "[1,\n2]"]),
    ({"json": {"type": "array"}}, ["[1," + " " * 100 + "2]"], ["[1," + " " * 101 + "2]"]),
    ({"json": schemas.OPEN}, ['{"a":1,"b":"c"}'], ['{"\\u0061":"x"}', '{"a":"x"}', '{"a":1,"a":"x"}']),
]


@pytest.mark.parametrize(("spec", "fitting", "others"), ANSWERS, ids=[str(a[0])[:40] for a in ANSWERS])
def test_answers(
    spec: dict[str, Any], fitting: list[str], others: list[str], factory: GuideFactory, tokenizer: Tokenizer
) -> None:
    for text in fitting:
        assert said(factory, tokenizer, spec, text), text
    for text in others:
        assert not said(factory, tokenizer, spec, text), text


def test_texts_of_special_tokens_are_spelled_out(factory: GuideFactory, tokenizer: Tokenizer, walker: Walker) -> None:
    """A special token is allowed by its id only: its text in a schema or a grammar is other tokens."""
    special = tokenizer.token_id("<｜User｜>")
    for spec in ({"json": {"const": "<｜User｜>"}}, {"choice": ["<｜User｜>"]}, {"grammar": 'start: "<｜User｜>"'}):
        tokens = walker.walk(factory.guide(spec), np.random.default_rng(5), 20)
        assert special not in tokens and "<｜User｜>" in tokenizer.decode(tokens)
    by_id = factory.guide({"grammar": f'start: <[{special}]> "a"'})
    assert [t for t in range(VOCAB) if allows(by_id.masks()[0], t)] == [special]
    anything = factory.guide({"regex": r"(.|\n)*"}).masks()[0]
    added = [t for t in range(VOCAB) if not tokenizer.decode([t])]
    assert [t for t in (*added, *range(512, VOCAB)) if allows(anything, t)] == [EOS]
    assert sum(allows(anything, t) for t in range(VOCAB)) > 400


TOO_LARGE = "the JSON schema can't be used: schema too large"

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"json": {"type": "text"}}, "the JSON schema can't be used: Invalid type: text"),
    ({"json": {"not": {}}}, 'the JSON schema can\'t be used: Unimplemented keys: ["not"]'),
    ({"json": {"uniqueItems": True}}, 'the JSON schema can\'t be used: Unimplemented keys: ["uniqueItems"]'),
    ({"json": {"$ref": "#/$defs/a"}}, "the JSON schema can't be used: Pointer '/$defs/a' does not exist"),
    ({"json": {"$ref": "#"}}, "the JSON schema can't be used: nothing fits it"),
    ({"json": {"enum": []}}, "the JSON schema can't be used: Unsatisfiable schema: anyOf is empty"),
    ({"json": {"type": "string", "format": "color"}}, "the JSON schema can't be used: Unknown format: color"),
    ({"json": {"allOf": [{"anyOf": [{"properties": {f"{i}{j}": {}}} for j in "abcd"]} for i in range(9)]}}, TOO_LARGE),
    (
        {"json": {"type": "string", "pattern": "(?=a)b"}},
        "the JSON schema can't be used: look-around, including look-ahead and look-behind, is not supported",
    ),
    ({"regex": "(a"}, "the regular expression can't be used: unclosed group"),
    ({"regex": r"[^\s\S]"}, "the regular expression can't be used: nothing fits it"),
    ({"grammar": "start: a"}, 'the grammar can\'t be used: at 1(8): unknown name: "a"'),
    ({"grammar": '{"no": 1}'}, "the grammar can't be used: 1(1): expecting rule, token or statement (at \"{\" ('{'))"),
]


@pytest.mark.parametrize(("spec", "what"), REFUSED, ids=[r[1][:60] for r in REFUSED])
def test_refused(spec: dict[str, Any], what: str, factory: GuideFactory) -> None:
    with pytest.raises(DeepZigError) as caught:
        factory.guide(spec)
    fix = "leave that out, or say it another way"
    assert str(caught.value) == f"{what}\n  at: option structured_outputs\n  fix: {fix}"


DEEP = {
    "references": {"json": {"$defs": {f"a{i}": {"items": {"$ref": f"#/$defs/a{i + 1}"}} for i in range(4900)}}},
    "rules": {"grammar": "start: a0\n" + "".join(f"a{i}: a{i + 1}\n" for i in range(4600)) + 'a4600: "a"'},
}
DEEP["references"]["json"] |= {"$ref": "#/$defs/a0"}
DEEP["references"]["json"]["$defs"]["a4900"] = {"type": "null"}


@pytest.mark.parametrize("kind", DEEP)
def test_what_would_overflow_a_stack(kind: str, factory: GuideFactory) -> None:
    """llguidance crashes the process there: on a thread of our own it has the stack that it takes."""
    assert factory.guide(DEEP[kind]).masks()[0] is not None


def random_walk(guide: Guide, rng: np.random.Generator, count: int) -> list[int]:
    tokens: list[int] = []
    while len(tokens) < count and not guide.ended:
        allowed = [t for t in range(VOCAB) if t != EOS and allows(guide.masks()[0], t)]
        tokens.append(int(rng.choice(allowed)))
        guide.push(tokens[-1])
    return tokens


@pytest.mark.parametrize("seed", range(6))
def test_masks_after_guesses(seed: int, factory: GuideFactory) -> None:
    """They are those of the tokens pushed one by one; asking changes nothing."""
    rng = np.random.default_rng(seed)
    spec = {"json": schemas.schema(100 + seed)}
    tokens = random_walk(factory.guide(spec), rng, 20)
    ahead, one_by_one = factory.guide(spec), factory.guide(spec)
    for i in range(len(tokens)):
        masks = ahead.masks(tokens[i : i + 4])
        assert len(masks) == len(tokens[i : i + 4]) + 1
        assert masks[0] is not None and masks[0].tobytes() == one_by_one.masks()[0].tobytes()
        if len(masks) > 1:
            one_by_one.push(tokens[i])
            assert masks[1].tobytes() == one_by_one.masks()[0].tobytes()
        wrong = next(t for t in range(VOCAB) if not allows(masks[0], t))
        assert len(ahead.masks([wrong, *tokens[i:]])) == 1
        assert len(ahead.masks([*tokens[i : i + 1], 0, *tokens[i + 1 :]])) == 2
        ahead.push(tokens[i])


def test_the_end(factory: GuideFactory, tokenizer: Tokenizer) -> None:
    a, b = tokenizer.encode("ab", special=False)
    guide = factory.guide({"regex": "ab?"})
    assert len(guide.masks([a, EOS, b])) == 2 and not guide.ended
    guide.push(a)
    assert not guide.ended and allows(guide.masks()[0], EOS) and allows(guide.masks()[0], b)
    guide.push(b)
    assert guide.ended and [t for t in range(VOCAB) if allows(guide.masks()[0], t)] == [EOS]
    guide.push(EOS)
    assert guide.ended


def test_a_token_that_does_not_fit(factory: GuideFactory, tokenizer: Tokenizer) -> None:
    (b,) = tokenizer.encode("b", special=False)
    with pytest.raises(DeepZigError) as caught:
        factory.guide({"regex": "a"}).push(b)
    why = """Parser Error: token "b" doesn't satisfy the grammar; forced bytes: got 'a'; applying 'b'"""
    where, fix = "option structured_outputs", "give a simpler schema or grammar"
    assert str(caught.value) == f"the structure can't be followed: {why}\n  at: {where}\n  fix: {fix}"


def test_what_grows_too_complex(factory: GuideFactory) -> None:
    """Any of 3,000 names may come next."""
    guide = factory.guide({"json": {"properties": {f"k{i}": {} for i in range(3000)}, "type": "object"}})
    with pytest.raises(DeepZigError) as caught:
        random_walk(guide, np.random.default_rng(3), 9)
    what = "the structure can't be followed: Parser Error: Current row has 12007 items; max is 2000; "
    what += "consider making your grammar left-recursive if it's right-recursive"
    where, fix = "option structured_outputs", "give a simpler schema or grammar"
    assert str(caught.value) == f"{what}\n  at: {where}\n  fix: {fix}"


def test_armed_later(factory: GuideFactory, tokenizer: Tokenizer) -> None:
    """Before, anything goes, the end token too; the tokens that arm it may be several, and come again later."""
    x, a, b = tokenizer.encode("xab", special=False)
    guide = factory.guide({"regex": "ab?"}, armed_after=(x, a))
    masks = guide.masks([b, EOS, x, x, a, a, b])
    assert [mask is None for mask in masks] == [True] * 5 + [False] * 3
    assert [t for t in range(VOCAB) if allows(masks[5], t)] == [a]
    assert guide.masks([b])[0] is None and not guide.ended
    for token in (a, x, a):
        guide.push(token)
    assert not allows(guide.masks()[0], x) and allows(guide.masks()[0], a)


def test_opened_by_the_answer(factory: GuideFactory, tokenizer: Tokenizer) -> None:
    """It may begin with the token that puts the guide off, or go on at once as the structure says."""
    x, a, b = tokenizer.encode("xab", special=False)
    for thinks in (True, False):
        guide = factory.guide({"regex": "ab?"}, armed_after=[b], opened_by=x)
        assert [t for t in range(VOCAB) if allows(guide.masks()[0], t)] == sorted((x, a))
        masks = guide.masks([x, x, b, a])
        assert masks[1] is None and masks[2] is None and masks[3] is not None and len(masks) == 5
        if thinks:
            guide.push(x)
            assert guide.masks()[0] is None
            guide.push(b)
        assert [t for t in range(VOCAB) if t != x and allows(guide.masks()[0], t)] == [a]
        guide.push(a)
        assert allows(guide.masks()[0], EOS) and not allows(guide.masks()[0], x)


@pytest.mark.parametrize("vocab", [7, 530, 4099])
def test_apply(vocab: int) -> None:
    """Rows of any length; equal to the meaning bit for bit."""
    rng = np.random.default_rng(vocab)
    allowed = rng.random(vocab) < 0.3
    mask = np.zeros(-(-vocab // 32), np.uint32)
    for token in np.flatnonzero(allowed):
        mask[token // 32] |= np.uint32(1 << (token % 32))
    logits = rng.normal(0, 9, vocab).astype(np.float32)
    want = np.where(allowed, logits, -np.inf)
    assert [allows(mask, t) for t in range(vocab)] == allowed.tolist()
    row = logits.copy()
    apply(None, row)
    assert row.tobytes() == logits.tobytes()
    apply(mask, row)
    assert row.tobytes() == want.astype(np.float32).tobytes()


def test_numbers_that_are_none_stay() -> None:
    """A model that computes nonsense is told of, whatever the mask says."""
    row = np.array([1, np.nan, np.inf, np.nan], np.float32)
    apply(np.array([0b0011], np.uint32), row)
    assert row[0] == 1 and np.isnan(row[1]) and row[2] == -np.inf and np.isnan(row[3])


def test_several_threads(factory: GuideFactory, walker: Walker) -> None:
    """Guides of one grammar, asked for and followed at once; and one guide asked from several threads."""
    spec = {"json": schemas.schema(101)}
    alone = [walker.walk(factory.guide(spec), np.random.default_rng(i), 30) for i in range(4)]
    shared, wanted = factory.guide(spec), factory.guide(spec).masks()[0].tobytes()
    together: dict[int, list[int]] = {}

    def work(i: int) -> None:
        together[i] = walker.walk(factory.guide(spec), np.random.default_rng(i), 30)
        assert all(shared.masks(alone[0][:3])[0].tobytes() == wanted for _ in range(50))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[i] for i in range(4)] == alone


def test_a_compiled_grammar_is_kept(factory: GuideFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = {"json": {"const": "kept"}}
    factory.guide(spec)
    monkeypatch.setattr(factory, "_matcher", None)
    assert factory.guide({"json": '{"const":"kept"}'}).masks()[0] is not None


def test_another_tokenizer(tmp_path: Path) -> None:
    """Its added tokens are in its vocabulary too, a post-processor names them, and its pieces are bytes mostly."""
    tokenizer = Tokenizer(fake.write_tokenizer(tmp_path))
    factory = GuideFactory(tokenizer, 320, [1])
    walker = Walker(tokenizer, 320, 1)
    schema = {"enum": ["日本語 😀", "Grüße", fake.EOS]}
    for seed in range(6):
        tokens = walker.walk(factory.guide({"json": schema}), np.random.default_rng(seed), 40)
        assert json.loads(tokenizer.decode(tokens)) in schema["enum"]


def test_without_llguidance(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(DeepZigError) as caught:
        GuideFactory(tokenizer, VOCAB, [EOS])
    where, fix = "option structured_outputs", "pip install 'deepzig[structured]'"
    assert str(caught.value) == f"llguidance is not installed\n  at: {where}\n  fix: {fix}"


@pytest.mark.parametrize(
    ("vocab", "eos", "why"),
    [(500, [1], "vocab size too small; 500 vs 512"), (530, [], "eos_token list must not be empty")],
)
def test_a_vocabulary_that_does_not_fit(vocab: int, eos: list[int], why: str, tokenizer: Tokenizer) -> None:
    with pytest.raises(DeepZigError) as caught:
        GuideFactory(tokenizer, vocab, eos)
    where, fix = "option structured_outputs", "compile the model again with its own tokenizer"
    assert str(caught.value) == f"the tokenizer can't guide answers: {why}\n  at: {where}\n  fix: {fix}"
