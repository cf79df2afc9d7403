"""What the corpus' tasks ask about and what is right: operands drawn from a random source, and their answers."""

from __future__ import annotations

import json
import random

from .words import ANIMALS, CITIES, COLOURS, DAYS, MONTHS, NAMES, PLACES, WORDS

Operands = tuple[str | int, ...]

SINGLE_TOKENS = frozenset(ANIMALS + PLACES + COLOURS)
"""Words of the stories, and of the vocabulary: their letters have to be learned by heart."""


def number(rng: random.Random) -> int:
    """Mostly three digits: they are the hard ones."""
    return rng.randrange(rng.choices((10, 100, 1000), (1, 2, 7))[0])


def two_numbers(rng: random.Random) -> Operands:
    """Any two."""
    return number(rng), number(rng)


def descending(rng: random.Random) -> Operands:
    """The larger one first: the model knows no negative numbers."""
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
    """Two different numbers, half of the time near ones."""
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
    """Short words that begin differently."""
    while True:
        words = [word(rng) for _ in range(3)]
        if len({w[0] for w in words}) == 3 and max(map(len, words)) <= 5:
            return tuple(words)


def listing(rng: random.Random) -> Operands:
    """Two to six words that are single tokens."""
    return tuple(rng.choice(COLOURS + ANIMALS + PLACES) for _ in range(rng.randrange(2, 7)))


def span(rng: random.Random) -> Operands:
    """First and last of two to six days or months, round the end of the week or year as well."""
    kind = rng.choice((DAYS, MONTHS))
    start, length = rng.randrange(len(kind)), rng.randrange(1, 6)
    return ("days" if kind is DAYS else "months"), kind[start], kind[(start + length) % len(kind)]


def span_answer(operands: Operands) -> str:
    """Every day or month from the first to the last."""
    kind = DAYS if operands[0] == "days" else MONTHS
    first, last = (kind.index(str(name)) for name in operands[1:])
    return ", ".join(kind[(first + i) % len(kind)] for i in range((last - first) % len(kind) + 1))


def neighbours(rng: random.Random) -> Operands:
    """After or before one or two days or months; the first may be a day and the second a month."""
    kind = rng.choice((DAYS, MONTHS))
    pair = rng.choice(kind), rng.choice(kind)
    return rng.choice(("after", "before")), pair[0], pair[1] if rng.random() < 0.7 else ""


def neighbours_fields(operands: Operands) -> dict[str, str | int]:
    """The direction, and one name or two."""
    where, first, second = operands
    return {"where": where, "what": f"{first} and {second}" if second else first}


def neighbours_answer(operands: Operands) -> str:
    """The neighbour of each."""
    step = 1 if operands[0] == "after" else -1
    return " and ".join(neighbour(str(name), step) for name in operands[1:] if name)


def neighbour(name: str, step: int) -> str:
    """The day or month that many steps on."""
    kind = DAYS if name in DAYS else MONTHS
    return kind[(kind.index(name) + step) % len(kind)]


def person(rng: random.Random) -> Operands:
    """Name, age, city."""
    return rng.choice(NAMES), rng.randrange(1, 100), rng.choice(CITIES)


def record(operands: Operands) -> str:
    """The three as JSON."""
    return json.dumps(dict(zip(("name", "age", "city"), operands, strict=True)))


def person_and_key(rng: random.Random) -> Operands:
    """A record and one of its keys."""
    return *person(rng), rng.choice(("name", "age", "city"))


def person_and_change(rng: random.Random) -> Operands:
    """A record, one of its keys and a new value."""
    key = rng.randrange(3)
    return *person(rng), ("name", "age", "city")[key], person(rng)[key]


def get_answer(operands: Operands) -> str:
    """The key and its value as JSON."""
    return json.dumps({operands[3]: operands[("name", "age", "city").index(str(operands[3]))]})


def set_answer(operands: Operands) -> str:
    """The changed record."""
    changed: dict[str, str | int] = dict(zip(("name", "age", "city"), operands[:3], strict=True))
    changed[str(operands[3])] = operands[4]
    return json.dumps(changed)


def story(operands: Operands) -> str:
    """The four operands carried through a tale."""
    name, animal, place, colour = operands
    return (
        f"{name} had a {colour} {animal}. One day {name} and the {animal} went to the {place}. "
        f"They played all day. Then {name} and the {animal} went home."
    )
