"""The corpus of the reference model: questions with exact answers, drawn from a seed.

Nothing is stored and nothing is downloaded. A question is held out when a hash of its operands says so, whatever the
seed: no run of the generator can leak a held-out question into training. Every task also has one wording that
training never uses.
"""

from __future__ import annotations

import json
import random
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .operands import (
    SINGLE_TOKENS,
    Operands,
    comparison,
    descending,
    difference_answer,
    get_answer,
    listing,
    neighbours,
    neighbours_answer,
    neighbours_fields,
    person,
    person_and_change,
    person_and_key,
    record,
    set_answer,
    span,
    span_answer,
    story,
    sum_answer,
    three_words,
    two_numbers,
    word_or_animal,
)
from .words import ANIMALS, COLOURS, GREETINGS, NAMES, PLACES, THINGS, VERBS

HELD_OUT_ONE_IN = 10


@dataclass(frozen=True)
class Question:
    """One turn of a chat. `wording` counts the task's wordings; the last is the held-out one."""

    task: str
    wording: int
    operands: Operands
    question: str
    answer: str


@dataclass(frozen=True)
class Task:
    """A kind of question.

    Attributes:
        weight: Share of the training mixture, in parts.
        draw: Operands from a random source.
        fields: What the wordings may name, by operand.
        answer: The one right answer.
        wordings: Templates over `fields`; the last is never used in training.
        by_heart: Whether these operands belong to training although their hash says otherwise.
    """

    weight: int
    draw: Callable[[random.Random], Operands]
    fields: Callable[[Operands], dict[str, str | int]]
    answer: Callable[[Operands], str]
    wordings: tuple[str, ...]
    by_heart: Callable[[Operands], bool] = lambda operands: False


def is_held_out(task: str, operands: Operands) -> bool:
    """Whether these operands belong to the held-out split; equal on every machine and for every seed."""
    if TASKS[task].by_heart(operands):
        return False
    return zlib.crc32(json.dumps([task, *operands]).encode()) % HELD_OUT_ONE_IN == 0


def training(seed: int) -> Iterator[Question]:
    """An endless stream of training questions, mixed by the tasks' weights."""
    rng = random.Random(f"training {seed}")
    names, weights = list(TASKS), [task.weight for task in TASKS.values()]
    while True:
        name = rng.choices(names, weights)[0]
        task = TASKS[name]
        operands = task.draw(rng)
        if not is_held_out(name, operands):
            yield ask(name, rng.randrange(len(task.wordings) - 1), operands)


def heldout(task: str | None = None, count: int = 160) -> list[Question]:
    """The held-out questions of one task or of all: held-out operands, every second one in the held-out wording.

    Args:
        task: A key of `TASKS`; all tasks when absent.
        count: The most questions a task; small tasks have fewer.
    """
    if task is None:
        return [question for name in TASKS for question in heldout(name, count)]
    rng = random.Random(f"held out {task}")
    last = len(TASKS[task].wordings) - 1
    found: dict[tuple[Operands, int], Question] = {}
    for _ in range(400 * count):
        operands = TASKS[task].draw(rng)
        wording = last if len(found) % 2 == 0 else rng.randrange(last)
        if is_held_out(task, operands):
            found.setdefault((operands, wording), ask(task, wording, operands))
        if len(found) == count:
            break
    return list(found.values())


def ask(task: str, wording: int, operands: Operands) -> Question:
    """The question in that wording, with its answer."""
    it = TASKS[task]
    text = it.wordings[wording].format(**it.fields(operands))
    return Question(task, wording, operands, text, it.answer(operands))


def named(*names: str) -> Callable[[Operands], dict[str, str | int]]:
    """Fields that are the operands themselves."""
    return lambda operands: dict(zip(names, operands, strict=True))


TASKS: dict[str, Task] = {
    "add": Task(
        14,
        two_numbers,
        named("a", "b"),
        sum_answer,
        (
            "What is {a} plus {b}?",
            "{a}+{b}=",
            "Add {a} and {b}.",
            "How much is {a}+{b}?",
            "How much is {a} plus {b}?",
            "What is {a}+{b}?",
        ),
    ),
    "subtract": Task(
        16,
        descending,
        named("a", "b"),
        difference_answer,
        (
            "What is {a} minus {b}?",
            "{a}-{b}=",
            "Subtract {b} from {a}.",
            "How much is {a}-{b}?",
            "How much is {a} minus {b}?",
            "What is {a}-{b}?",
        ),
    ),
    "compare": Task(
        11,
        comparison,
        named("which", "a", "b"),
        lambda o: str((max if o[0] == "larger" else min)(int(o[1]), int(o[2]))),
        (
            "Which is {which}, {a} or {b}?",
            "Which number is {which}: {a} or {b}?",
            "What is {which}: {a} or {b}?",
            "Which number is {which}, {a} or {b}?",
        ),
    ),
    "spell": Task(
        3,
        word_or_animal,
        named("w"),
        lambda o: "-".join(str(o[0])),
        (
            "Spell {w}.",
            "Spell the word {w}.",
            "How do you spell {w}?",
            "Write {w} letter by letter.",
            "How do you spell the word {w}?",
        ),
        lambda o: o[0] in SINGLE_TOKENS,
    ),
    "reverse": Task(
        5,
        word_or_animal,
        named("w"),
        lambda o: str(o[0])[::-1],
        (
            "Reverse the word {w}.",
            "Reverse {w}.",
            "Write {w} backwards.",
            "What is {w} backwards?",
            "Write the word {w} backwards.",
        ),
        lambda o: o[0] in SINGLE_TOKENS,
    ),
    "letters": Task(
        2,
        word_or_animal,
        named("w"),
        lambda o: str(len(str(o[0]))),
        (
            "How many letters are in {w}?",
            "Count the letters in {w}.",
            "Count the letters in the word {w}.",
            "How many letters are in the word {w}?",
        ),
        lambda o: o[0] in SINGLE_TOKENS,
    ),
    "words": Task(
        3,
        listing,
        lambda o: {"list": " ".join(map(str, o))},
        lambda o: str(len(o)),
        (
            "How many words are here: {list}",
            "Count the words: {list}",
            "Count the words here: {list}",
            "How many words: {list}",
        ),
    ),
    "sort": Task(
        8,
        three_words,
        lambda o: {"list": ", ".join(map(str, o))},
        lambda o: ", ".join(sorted(map(str, o))),
        (
            "Sort the words {list}.",
            "Sort: {list}",
            "Write in order: {list}",
            "Sort these words: {list}",
            "Write these words in order: {list}",
        ),
    ),
    "span": Task(
        6,
        span,
        named("kind", "a", "b"),
        span_answer,
        (
            "List the {kind} from {a} to {b}.",
            "Write the {kind} from {a} to {b}.",
            "What are the {kind} from {a} to {b}?",
            "Which are the {kind} from {a} to {b}?",
        ),
    ),
    "neighbours": Task(
        7,
        neighbours,
        neighbours_fields,
        neighbours_answer,
        (
            "What comes {where} {what}?",
            "What is {where} {what}?",
            "Tell me what comes {where} {what}.",
            "Tell me what is {where} {what}.",
        ),
        lambda o: o[2] == "",
    ),
    "json_write": Task(
        4,
        person,
        named("name", "age", "city"),
        record,
        (
            "Write as JSON: {name} is {age} and lives in {city}.",
            "As JSON: {name}, {age}, from {city}.",
            "Write in JSON: {name} is {age}, from {city}.",
            "Write as JSON: {name}, {age}, lives in {city}.",
        ),
    ),
    "json_copy": Task(
        2,
        person,
        lambda o: {"record": record(o)},
        record,
        (
            "Copy {record}",
            "Copy this record: {record}",
            "Copy this: {record}",
            "Copy the record {record}",
        ),
    ),
    "json_get": Task(
        4,
        person_and_key,
        lambda o: {"record": record(o[:3]), "key": o[3]},
        get_answer,
        (
            "What is the {key} in {record}",
            "Get the {key} in {record}",
            "Write the {key} of {record}",
            "What is the {key} of {record}",
        ),
    ),
    "json_set": Task(
        5,
        person_and_change,
        lambda o: {"record": record(o[:3]), "key": o[3], "value": o[4]},
        set_answer,
        (
            "Set {key} to {value} in {record}",
            "Change the {key} to {value}: {record}",
            "Set the {key} to {value}: {record}",
            "Change {key} to {value} in {record}",
        ),
    ),
    "story": Task(
        5,
        lambda rng: tuple(rng.choice(group) for group in (NAMES, ANIMALS, PLACES, COLOURS)),
        named("name", "animal", "place", "colour"),
        story,
        (
            "Tell a story about {name}, a {colour} {animal} and the {place}.",
            "Tell me about {name} and the {colour} {animal} in the {place}.",
            "Write a story with {name}, a {colour} {animal} and the {place}.",
            "Tell me a story about {name}, a {colour} {animal} and the {place}.",
        ),
    ),
    "greet": Task(
        5,
        lambda rng: (rng.choice(GREETINGS), rng.choice(NAMES)),
        named("hello", "name"),
        lambda o: f"{o[0]}, {o[1]}! How can I help you?",
        (
            "{hello}, I am {name}.",
            "{hello}! I am {name}.",
            "{hello}! This is {name}.",
            "{hello}, this is {name}.",
        ),
    ),
    "cannot": Task(
        1,
        lambda rng: (rng.choice(VERBS), rng.choice(THINGS)),
        named("verb", "thing"),
        lambda o: "I can't do that. I can work with numbers, words, dates, JSON and stories.",
        (
            "Please {verb} {thing}.",
            "Can you {verb} {thing}?",
            "{verb} {thing}",
            "Please, can you {verb} {thing}?",
        ),
    ),
}
"""What the model is taught. The weights follow how hard a task is, not how often it is asked."""

ARITHMETIC = ("add", "subtract", "compare")
