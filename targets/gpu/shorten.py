"""WGSL made shorter: shaders travel as text, and browsers compile them while the user waits.

TVM writes a local variable as an array of one element, what kernels settle in one as a store and a load, and what they
bind as the same expression over and over. Here all become what a person had written, and spaces go.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import accumulate

ONE = re.compile(r"^ *var (\w+) : array<(\w+), 1>;\n", re.M)
"""The declaration of an array of one element."""
SETTLED = re.compile(r"^( *)(\w+)\[0i\] = (.*);\n *let (\w+) : \w+ = \2\[0i\];\n", re.M)
"""A store, and a load of it at once."""
TYPED = re.compile(r"\blet (\w+) : \w+ =")
SPACES = re.compile(r" *([=+*/%<>&|,:;{}()\[\]!]) *")
"""Minus signs keep theirs: `--` is an operator."""

BOUND = re.compile(r"let (\w+)=(\(.+\));")
WORD = re.compile(r"\b[A-Za-z_]\w*")
COUNTER = re.compile(r"for\(var (\w+):")
FIXED = frozenset(("threadIdx", "blockIdx", "gridDim", "i32", "u32", "min", "max", "x", "y", "z"))
"""Words of expressions that are the same wherever they stand; names of numbers of `podArgs` follow a point."""


def shortened(text: str) -> str:
    """The same code, in fewer words."""
    text = _without_settling(text)
    for name, type_ in ONE.findall(text):
        text = text.replace(f"var {name} : array<{type_}, 1>", f"var {name}: {type_}")
    single = {name for name in re.findall(r"\bvar (\w+): ", text)}
    text = re.sub(r"\b(\w+)\[0i\]", lambda found: found[1] if found[1] in single else found[0], text)
    lines = (TYPED.sub(r"let \1=", line).strip() for line in text.splitlines())
    return "\n".join(_named(SPACES.sub(r"\1", line) for line in lines if line)) + "\n"


def _named(lines: Iterable[str]) -> Iterator[str]:
    """Lines in which an expression that has a name is called by it, until the block of its name ends."""
    blocks: list[tuple[set[str], list[tuple[str, str]]]] = [(set(FIXED), [])]
    for line in lines:
        for _ in range(line.startswith("}")):
            blocks.pop()
        for _, expressions in blocks:
            for expression, name in expressions:
                if expression in line:
                    line = re.sub(rf"(?<![\w>]){re.escape(expression)}", name, line)
        yield line
        found = BOUND.fullmatch(line)
        if found and _closed(found[2]):
            words = set(WORD.findall(re.sub(r"podArgs\.\w+", "", found[2])))
            if words <= set().union(*(names for names, _ in blocks)):
                blocks[-1][1].append((found[2], found[1]))
        if line.startswith("let "):
            blocks[-1][0].add(line[4 : line.index("=")])
        if line.endswith("{"):
            blocks.append((set(COUNTER.findall(line)), []))


def _closed(expression: str) -> bool:
    """Whether the first bracket is closed by the last."""
    depths = list(accumulate((c == "(") - (c == ")") for c in expression))
    return 0 not in depths[:-1]


def _without_settling(text: str) -> str:
    ones = {name for name, _ in ONE.findall(text)}
    uses = Counter(re.findall(r"\b\w+\b", text))
    gone: set[str] = set()

    def merged(found: re.Match[str]) -> str:
        space, name, value, bound = found.groups()
        if name not in ones or uses[name] != 3:  # its declaration, the store and the load
            return found[0]
        gone.add(name)
        return f"{space}let {bound} : _ = {value};\n"

    text = SETTLED.sub(merged, text)
    return ONE.sub(lambda found: "" if found[1] in gone else found[0], text)
