"""The reference model's corpus and tokenizer: right answers, the same everywhere, nothing held out in training."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from itertools import islice, pairwise

import pytest
from jinja2 import Environment
from tokenizers import Tokenizer

from deepzig.models.reference.corpus import TASKS, Question, heldout, is_held_out, training
from deepzig.models.reference.tokenizer import ASSISTANT, BOS, CHAT_TEMPLATE, EOS, USER, VOCABULARY_SIZE, build
from deepzig.models.reference.words import DAYS, MONTHS, WORDS

SAMPLE = 30011


@pytest.fixture(scope="module")
def trained() -> list[Question]:
    return list(islice(training(7), SAMPLE))


@pytest.fixture(scope="module")
def held() -> list[Question]:
    return heldout()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return build()


def test_the_same_seed_gives_the_same_questions() -> None:
    def digest(seed: int) -> str:
        return hashlib.sha256(repr(list(islice(training(seed), 501))).encode()).hexdigest()

    assert digest(3) == digest(3) != digest(4)
    assert heldout("add") == heldout("add")


def test_the_generator_does_not_drift() -> None:
    """A changed corpus is another model: train it again, then change this line."""
    assert hashlib.sha256(repr(heldout()).encode()).hexdigest()[:16] == "861b6f8e9dcb9519"


def test_no_held_out_operands_or_wordings_in_training(trained: list[Question], held: list[Question]) -> None:
    assert not {(q.task, q.operands) for q in trained} & {(q.task, q.operands) for q in held}
    assert not {q.question for q in trained} & {q.question for q in held}
    assert all(q.wording < len(TASKS[q.task].wordings) - 1 for q in trained)
    assert all(is_held_out(q.task, q.operands) for q in held)


def test_the_held_out_split_is_large_and_half_in_new_wordings(held: list[Question]) -> None:
    assert len(held) >= 2000 and {q.task for q in held} == set(TASKS)
    assert len({(q.question, q.answer) for q in held}) == len(held)
    fresh = [q for q in held if q.wording == len(TASKS[q.task].wordings) - 1]
    assert 0.45 < len(fresh) / len(held) < 0.55


def independent(q: Question) -> str | None:
    """The answer read from the question's text alone; None where the text names no rule."""
    numbers = [int(n) for n in re.findall(r"\d+", q.question)]
    match q.task:
        case "compare":
            return str(max(numbers) if "larger" in q.question else min(numbers))
        case "spell":
            return "-".join(asked_word(q))
        case "reverse":
            return "".join(reversed(asked_word(q)))
        case "letters":
            return str(len(asked_word(q)))
        case "words":
            return str(q.question.split(": ")[-1].count(" ") + 1)
        case "sort":
            return ", ".join(sorted(re.findall(r"[a-z]+", q.question)[-3:]))
        case "neighbours":
            step = 1 if "after" in q.question else -1
            return " and ".join(beside(name, step) for name in re.findall("|".join(DAYS + MONTHS), q.question))
    return None


def asked_word(q: Question) -> str:
    """The one word that no wording has."""
    fixed = set(re.findall(r"\w+", " ".join(TASKS[q.task].wordings)))
    (word,) = set(re.findall(r"\w+", q.question)) - fixed
    return word


def beside(name: str, step: int) -> str:
    names = DAYS if name in DAYS else MONTHS
    return names[(names.index(name) + step) % len(names)]


def test_answers(trained: list[Question], held: list[Question]) -> None:
    checked: Counter[str] = Counter()
    for q in trained + held:
        right = independent(q)
        if right is not None:
            assert q.answer == right, q
            checked[q.task] += 1
    assert checked.keys() == {"compare", "spell", "reverse", "letters", "words", "sort", "neighbours"}


@pytest.mark.parametrize(("task", "sign"), [("add", 1), ("subtract", -1)])
def test_every_step_of_a_sum_is_right(task: str, sign: int, trained: list[Question]) -> None:
    for q in (q for q in trained if q.task == task):
        a, b = (int(n) for n in re.findall(r"\d+", q.question))
        a, b = (b, a) if q.question.startswith("Subtract") else (a, b)
        steps, _, result = q.answer.rpartition(": ")
        assert int(result) == a + sign * b
        digits = []
        for step in steps.split(", "):
            left, _, right = step.partition("=")
            assert sum(int(n) for n in re.findall(r"[+-]?\d+", left)) == int(right)
            digits.append(int(right))
        assert sum(digit % 10**9 % 10 * 10**i for i, digit in enumerate(digits[:-1])) + digits[-1] * 10 ** (
            len(digits) - 1
        ) == int(result)


def test_json_answers_are_json(held: list[Question]) -> None:
    for q in (q for q in held if q.task.startswith("json")):
        told = json.loads(q.answer)
        name, age, city, *change = q.operands
        record = {"name": name, "age": age, "city": city}
        if q.task == "json_get":
            assert told == {change[0]: record[str(change[0])]}
        else:
            assert told == (record | {change[0]: change[1]} if change else record)


def test_spans_go_from_the_first_to_the_last(held: list[Question]) -> None:
    for q in (q for q in held if q.task == "span"):
        _, first, last = q.operands
        names = q.answer.split(", ")
        assert (names[0], names[-1]) == (first, last)
        assert all(beside(a, 1) == b for a, b in pairwise(names))


def test_stories_carry_their_names(held: list[Question]) -> None:
    stories = [q for q in held if q.task == "story"]
    assert stories and all(str(operand) in q.answer for q in stories for operand in q.operands)


def test_one_digit_is_one_token(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("1907+5=").tokens == ["1", "9", "0", "7", "+", "5", "="]
    assert tokenizer.encode("What is 40?").tokens == ["What", "Ġis", "Ġ", "4", "0", "?"]


def test_task_words_are_letters(tokenizer: Tokenizer) -> None:
    for word in WORDS:
        assert tokenizer.encode(f" {word}").tokens == ["Ġ", *word]
        assert tokenizer.encode(word[::-1]).tokens == [*word[::-1]]


def test_any_text_survives_the_tokenizer(tokenizer: Tokenizer, held: list[Question]) -> None:
    texts = [q.answer for q in held[::17]] + ["naïve café, 東京!\n\ttwo  spaces"]
    assert [tokenizer.decode(tokenizer.encode(text).ids) for text in texts] == texts
    assert tokenizer.get_vocab_size() == VOCABULARY_SIZE


def test_the_chat_template_is_what_training_sees(tokenizer: Tokenizer) -> None:
    messages = [
        {"role": "user", "content": "12+30="},
        {"role": "assistant", "content": "42"},
        {"role": "user", "content": "Hi"},
    ]
    text = (
        Environment()
        .from_string(CHAT_TEMPLATE)
        .render(messages=messages, bos_token=BOS, eos_token=EOS, add_generation_prompt=True)
    )
    assert tokenizer.encode(text).tokens == [
        *(BOS, USER, "1", "2", "+", "3", "0", "=", ASSISTANT, "4", "2", EOS),
        *(USER, "Hi", ASSISTANT),
    ]
