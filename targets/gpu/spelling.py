"""WGSL in fewer letters: short names and numbers, and brackets only where they are needed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from itertools import product
from string import ascii_letters

import numpy as np

from .brackets import unbracketed

FLOAT = re.compile(r"\b(\d+\.\d+e[+-]\d+)f\b")
INTEGER = re.compile(r"(?<![\w.])(?<!bitcast<f32>\()(\d+)i\b")
ELEMENT = re.compile(r"(?<![\w>])\((\w+)\)\[([0-3])i?\]")
TYPED = re.compile(r"\b(let \w+):vec4<\w+>=")
VECTOR = re.compile(r"\bvec([234])<([fiu])32>")
DECLARED = re.compile(r"\b(?:fn|let|var(?:<[\w,]+>)?|const|struct) ?(\w+)|[(){,\n](\w+):")
NAME = re.compile(r"(?<![\w@.])[A-Za-z_]\w*|(?<=podArgs\.)\w+")
SHORT = frozenset(("as", "at", "by", "do", "fn", "go", "if", "in", "is", "my", "no", "of", "on", "or", "to"))
"""Words of two letters that are not made names of: some are WGSL's."""


def spelled(text: str) -> str:
    """The same shader in fewer letters, on one line; what it begins with is called `main`."""
    text = FLOAT.sub(_float, text)
    text = INTEGER.sub(r"\1", TYPED.sub(r"\1=", text))
    text = VECTOR.sub(r"vec\1\2", text)
    text = ELEMENT.sub(lambda found: f"{found[1]}.{'xyzw'[int(found[2])]}", text)
    head, end, body = _named(text).partition("\n){\n")
    return "".join([*head.splitlines(), end.strip(), *map(unbracketed, body.splitlines())])


def _float(found: re.Match[str]) -> str:
    """The shortest spelling of a number that is the same f32."""
    value = np.float32(found[1])
    short = np.format_float_positional(value, trim="-") if 1e-3 <= value < 1e7 or value == 0 else f"{float(found[1]):g}"
    short = re.sub(r"e([+-])0?", lambda e: "e" + e[1].strip("+"), short)
    return f"{short if np.float32(short) == value else found[1]}f"


def _named(text: str) -> str:
    """Short names, the shortest for what stands there most often."""
    declared = {one or other for one, other in DECLARED.findall(text)}
    uses = Counter(name for name in NAME.findall(text) if name in declared)
    entry = re.search(r"^@compute .*\nfn (\w+)", text, re.M)
    assert entry is not None
    short = dict(zip((name for name, _ in uses.most_common() if name != entry[1]), _names(), strict=False))
    short[entry[1]] = "main"
    return NAME.sub(lambda found: short.get(found[0], found[0]), text)


def _names() -> Iterator[str]:
    yield from ascii_letters
    for first, second in product(ascii_letters, ascii_letters + "0123456789"):
        if first + second not in SHORT:
            yield first + second
