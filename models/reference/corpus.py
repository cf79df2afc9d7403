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

from .words import ANIMALS, CITIES, COLOURS, DAYS, GREETINGS, MONTHS, NAMES, PLACES, THINGS, VERBS, WORDS

HELD_OUT_ONE_IN = 10

Operands = tuple[str | int, ...]


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


def number(rng: random.Random) -> int:
    """Mostly three digits: they are the hard ones."""
    return rng.randrange(rng.choices((10, 100, 1000), (1, 2, 7))[0])


def two_numbers(rng: random.Random) -> Operands:
    return number(rng), number(rng)


def descending(rng: random.Random) -> Operands:
    a, b = number(rng), number(rng)
    return max(a, b), min(a, b)


def columns(operands: Operands) -> list[tuple[int, int]]:
    """The digits of both numbers, units first, the shorter one filled with zeros."""
    width = len(str(max(operands)))
    first, second = (str(number).zfill(width)[::-1] for number in operands)
    return [(int(a), int(b)) for a, b in zip(first, second, strict=True)]


def sum_answer(operands: Operands) -> str:
    """As on paper, column by column from the units: "7+5=12, 4+8+1=13, 3+2+1=6: 632"."""
    steps, carry = [], 0
    for a, b in columns(operands):
        total = a + b + carry
        steps.append(f"{a}+{b}{'+1' if carry else ''}={total}")
        carry = total // 10
    return f"{', '.join(steps)}: {int(operands[0]) + int(operands[1])}"


def difference_answer(operands: Operands) -> str:
    """As on paper; the upper digit stands as it is after borrowing: "12-8=4, 12-7=5, 4-2=2: 254" of 532 and 278."""
    steps, borrowed = [], 0
    for a, b in columns(operands):
        a -= borrowed
        borrowed = int(a < b)
        a += 10 * borrowed
        steps.append(f"{a}-{b}={a - b}")
    return f"{', '.join(steps)}: {int(operands[0]) - int(operands[1])}"


def comparison(rng: random.Random) -> Operands:
    a, b = number(rng), number(rng)
    if rng.random() < 0.5 and a >= 10:  # a near one: the first digits agree
        b = a // 10 * 10 + rng.randrange(10)
    return rng.choice(("larger", "smaller")), a, b if b != a else a + 1


def word(rng: random.Random) -> str:
    """A real word, or as often a made-up one: copying letters should not depend on knowing the word."""
    if rng.random() < 0.5:
        return rng.choice(WORDS)
    while True:
        made = "".join(rng.choice("bcdfghklmnprstvw") + rng.choice("aeiou") for _ in range(2))
        made += rng.choice(("", *"lmnrst", "nd", "st"))
        if made not in SINGLE_TOKENS and made[::-1] not in SINGLE_TOKENS:
            return made


def word_or_animal(rng: random.Random) -> Operands:
    """The stories' animals are single tokens; their letters have to be learned by heart."""
    return (rng.choice(ANIMALS + PLACES + COLOURS) if rng.random() < 0.1 else word(rng),)


def three_words(rng: random.Random) -> Operands:
    while True:
        words = [word(rng) for _ in range(3)]
        if len({w[0] for w in words}) == 3 and max(map(len, words)) <= 5:
            return tuple(words)


def listing(rng: random.Random) -> Operands:
    return tuple(rng.choice(COLOURS + ANIMALS + PLACES) for _ in range(rng.randrange(2, 7)))


def span(rng: random.Random) -> Operands:
    """First and last of two to six days or months, round the end of the week or year as well."""
    kind = rng.choice((DAYS, MONTHS))
    start, length = rng.randrange(len(kind)), rng.randrange(1, 6)
    return ("days" if kind is DAYS else "months"), kind[start], kind[(start + length) % len(kind)]


def span_answer(operands: Operands) -> str:
    kind = DAYS if operands[0] == "days" else MONTHS
    first, last = (kind.index(str(name)) for name in operands[1:])
    return ", ".join(kind[(first + i) % len(kind)] for i in range((last - first) % len(kind) + 1))


def neighbours(rng: random.Random) -> Operands:
    kind = rng.choice((DAYS, MONTHS))
    pair = rng.choice(kind), rng.choice(kind)
    return rng.choice(("after", "before")), pair[0], pair[1] if rng.random() < 0.7 else ""


def neighbours_fields(operands: Operands) -> dict[str, str | int]:
    where, first, second = operands
    return {"where": where, "what": f"{first} and {second}" if second else first}


def neighbours_answer(operands: Operands) -> str:
    step = 1 if operands[0] == "after" else -1
    return " and ".join(neighbour(str(name), step) for name in operands[1:] if name)


def neighbour(name: str, step: int) -> str:
    kind = DAYS if name in DAYS else MONTHS
    return kind[(kind.index(name) + step) % len(kind)]


def person(rng: random.Random) -> Operands:
    return rng.choice(NAMES), rng.randrange(1, 100), rng.choice(CITIES)


def record(operands: Operands) -> str:
    return json.dumps(dict(zip(("name", "age", "city"), operands, strict=True)))


def person_and_key(rng: random.Random) -> Operands:
    return *person(rng), rng.choice(("name", "age", "city"))


def person_and_change(rng: random.Random) -> Operands:
    key = rng.randrange(3)
    return *person(rng), ("name", "age", "city")[key], person(rng)[key]


def get_answer(operands: Operands) -> str:
    return json.dumps({operands[3]: operands[("name", "age", "city").index(str(operands[3]))]})


def set_answer(operands: Operands) -> str:
    changed = dict(zip(("name", "age", "city"), operands[:3], strict=True))
    changed[str(operands[3])] = operands[4]
    return json.dumps(changed)


def story(operands: Operands) -> str:
    name, animal, place, colour = operands
    return (
        f"{name} had a {colour} {animal}. One day {name} and the {animal} went to the {place}. "
        f"They played all day. Then {name} and the {animal} went home."
    )


TASKS: dict[str, Task] = {
    "add": Task(
        14,
        two_numbers,
        named("a", "b"),
        sum_answer,
        ("What is {a} plus {b}?", "{a}+{b}=", "Add {a} and {b}.", "How much is {a}+{b}?", "How much is {a} plus {b}?")
        + ("What is {a}+{b}?",),
    ),
    "subtract": Task(
        16,
        descending,
        named("a", "b"),
        difference_answer,
        ("What is {a} minus {b}?", "{a}-{b}=", "Subtract {b} from {a}.", "How much is {a}-{b}?")
        + ("How much is {a} minus {b}?", "What is {a}-{b}?"),
    ),
    "compare": Task(
        11,
        comparison,
        named("which", "a", "b"),
        lambda o: str((max if o[0] == "larger" else min)(int(o[1]), int(o[2]))),
        ("Which is {which}, {a} or {b}?", "Which number is {which}: {a} or {b}?", "What is {which}: {a} or {b}?")
        + ("Which number is {which}, {a} or {b}?",),
    ),
    "spell": Task(
        3,
        word_or_animal,
        named("w"),
        lambda o: "-".join(str(o[0])),
        ("Spell {w}.", "Spell the word {w}.", "How do you spell {w}?", "Write {w} letter by letter.")
        + ("How do you spell the word {w}?",),
        lambda o: o[0] in SINGLE_TOKENS,
    ),
    "reverse": Task(
        5,
        word_or_animal,
        named("w"),
        lambda o: str(o[0])[::-1],
        ("Reverse the word {w}.", "Reverse {w}.", "Write {w} backwards.", "What is {w} backwards?")
        + ("Write the word {w} backwards.",),
        lambda o: o[0] in SINGLE_TOKENS,
    ),
    "letters": Task(
        2,
        word_or_animal,
        named("w"),
        lambda o: str(len(str(o[0]))),
        ("How many letters are in {w}?", "Count the letters in {w}.", "Count the letters in the word {w}.")
        + ("How many letters are in the word {w}?",),
        lambda o: o[0] in SINGLE_TOKENS,
    ),
    "words": Task(
        3,
        listing,
        lambda o: {"list": " ".join(map(str, o))},
        lambda o: str(len(o)),
        ("How many words are here: {list}", "Count the words: {list}", "Count the words here: {list}")
        + ("How many words: {list}",),
    ),
    "sort": Task(
        8,
        three_words,
        lambda o: {"list": ", ".join(map(str, o))},
        lambda o: ", ".join(sorted(map(str, o))),
        ("Sort the words {list}.", "Sort: {list}", "Write in order: {list}", "Sort these words: {list}")
        + ("Write these words in order: {list}",),
    ),
    "span": Task(
        6,
        span,
        named("kind", "a", "b"),
        span_answer,
        ("List the {kind} from {a} to {b}.", "Write the {kind} from {a} to {b}.", "What are the {kind} from {a} to {b}?")
        + ("Which are the {kind} from {a} to {b}?",),
    ),
    "neighbours": Task(
        7,
        neighbours,
        neighbours_fields,
        neighbours_answer,
        ("What comes {where} {what}?", "What is {where} {what}?", "Tell me what comes {where} {what}.")
        + ("Tell me what is {where} {what}.",),
        lambda o: o[2] == "",
    ),
    "json_write": Task(
        4,
        person,
        named("name", "age", "city"),
        record,
        ("Write as JSON: {name} is {age} and lives in {city}.", "As JSON: {name}, {age}, from {city}.")
        + ("Write in JSON: {name} is {age}, from {city}.", "Write as JSON: {name}, {age}, lives in {city}."),
    ),
    "json_copy": Task(
        2,
        person,
        lambda o: {"record": record(o)},
        record,
        ("Copy {record}", "Copy this record: {record}", "Copy this: {record}", "Copy the record {record}"),
    ),
    "json_get": Task(
        4,
        person_and_key,
        lambda o: {"record": record(o[:3]), "key": o[3]},
        get_answer,
        ("What is the {key} in {record}", "Get the {key} in {record}", "Write the {key} of {record}")
        + ("What is the {key} of {record}",),
    ),
    "json_set": Task(
        5,
        person_and_change,
        lambda o: {"record": record(o[:3]), "key": o[3], "value": o[4]},
        set_answer,
        ("Set {key} to {value} in {record}", "Change the {key} to {value}: {record}", "Set the {key} to {value}: {record}")
        + ("Change {key} to {value} in {record}",),
    ),
    "story": Task(
        5,
        lambda rng: tuple(rng.choice(group) for group in (NAMES, ANIMALS, PLACES, COLOURS)),
        named("name", "animal", "place", "colour"),
        story,
        ("Tell a story about {name}, a {colour} {animal} and the {place}.",)
        + ("Tell me about {name} and the {colour} {animal} in the {place}.",)
        + ("Write a story with {name}, a {colour} {animal} and the {place}.",)
        + ("Tell me a story about {name}, a {colour} {animal} and the {place}.",),
    ),
    "greet": Task(
        5,
        lambda rng: (rng.choice(GREETINGS), rng.choice(NAMES)),
        named("hello", "name"),
        lambda o: f"{o[0]}, {o[1]}! How can I help you?",
        ("{hello}, I am {name}.", "{hello}! I am {name}.", "{hello}! This is {name}.", "{hello}, this is {name}."),
    ),
    "cannot": Task(
        1,
        lambda rng: (rng.choice(VERBS), rng.choice(THINGS)),
        named("verb", "thing"),
        lambda o: "I can't do that. I can work with numbers, words, dates, JSON and stories.",
        ("Please {verb} {thing}.", "Can you {verb} {thing}?", "{verb} {thing}", "Please, can you {verb} {thing}?"),
    ),
}
"""What the model is taught. The weights follow how hard a task is, not how often it is asked."""

ARITHMETIC = ("add", "subtract", "compare")

SINGLE_TOKENS = frozenset(ANIMALS + PLACES + COLOURS)
