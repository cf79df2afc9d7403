"""Statements of WGSL made fewer: what TVM writes over and over gets a name, and what needs none loses it.

All of it is done to the text of a shader, line by line: a line is a statement, or begins or ends a block. What is moved
or dropped has no effects and does not depend on what a shader writes.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from collections.abc import Set as AbstractSet

WORD = re.compile(r"(?<![\w.])[A-Za-z_]\w*")
"""A name, but not that of a member."""
LET = re.compile(r"let (\w+)=(.*);")
CHOSEN = re.compile(r"var (\w+):\w+;\nif\((.*)\)\{\n\1=(\w+\[\d+i\]);\n\}else\{\n\1=(\w+\[\d+i\]);\n\}\n")
"""A variable that one of two elements of arrays is stored in."""
SETTLED = re.compile(r"^(\w+)=(.*);\nlet (\w+)=(?:bool\(\1\)|\1);\n", re.M)
"""A store to a variable, and a load of it at once."""
BINDS = re.compile(r"(?:let|for\(var) (\w+)\b")
STORE = re.compile(r"(\w+)(?:=|\+\+)")
ZERO = re.compile(r"(\w+)\[(\d+)i\]=0(?:\.0+e\+00f|i|u);")
ARRAY = re.compile(r"^var (\w+):(array<\w+,(\d+)>);\n", re.M)
FOUR = re.compile(r"vec4<(\w+)>\((\w+)\[(\w+)\+0\],\2\[\3\+1\],\2\[\3\+2\],\2\[\3\+3\]\)")
"""Four elements of a buffer, one behind the other."""
ENTRY = re.compile(r"^@compute", re.M)
EFFECTS = re.compile(r"\bdz_(?:shuffle|sum|max|uniform)")
"""Calls that all threads have to come to."""
CALLED = frozenset(("i32", "u32", "f32", "min", "max", "select", "fma", "bitcast<i32>", "bitcast<u32>", "bitcast<f32>"))
"""Functions whose values depend on their arguments only, and cost little."""
GIVEN = frozenset(("podArgs", "blockIdx", "gridDim", "threadIdx"))
"""What every shader is given."""
LAST_OF_FOUR = re.compile(r"dz_dot4\(bitcast<i32>\((\(*\(\w+\)\[3\][^\[\],]*)\),bitcast<i32>\(\((\w+)\)\[3\]\),")
"""The outermost call of a chain of products of the words of two vectors."""
DOTS = """fn dz_dots(a:vec4<u32>,b:vec4<u32>,c:i32)->i32{
let x=bitcast<vec4<i32>>(a);
let y=bitcast<vec4<i32>>(b);
return dz_dot4(x.w,y.w,dz_dot4(x.z,y.z,dz_dot4(x.y,y.y,dz_dot4(x.x,y.x,c))));
}
"""
"""The products of signed bytes, sixteen at a time; sums of integers are exact."""
CALLEE = re.compile(r"(?:bitcast<\w+>|[A-Za-z_]\w*)$")
"""What is called, before the bracket."""
SHORTEST = 8
"""Letters of the shortest expression that is worth a name."""


def compacted(text: str) -> str:
    """The same shader in fewer statements."""
    text = CHOSEN.sub(r"let \1=select(\4,\3,\2);\n", text)
    text = _without_settled(text)
    text = _filled(text)
    text = _loaded(text)
    begin = ENTRY.search(text)
    assert begin is not None
    lines = text[begin.start() :].splitlines()
    lines = _merged(_inlined(_without_unused(_without_copies(_bound(lines)))))
    lines, dots = _in_fours(lines)
    first = next(i for i, line in enumerate(lines) if line == "){") + 1
    body = _without_copies(_Block(lines[first:-1]).named(GIVEN, _fresh()))
    return text[: begin.start()] + dots + "\n".join([*lines[:first], *body, "}"]) + "\n"


def _without_settled(text: str) -> str:
    """Variables that are written once, and read by the next statement only, are what that binds."""
    uses = Counter(WORD.findall(text))

    def merged(found: re.Match[str]) -> str:
        name, value, bound = found.groups()
        return f"let {bound}={value};\n" if uses[name] == 3 else found[0]

    text = SETTLED.sub(merged, text)
    left = Counter(WORD.findall(text))
    return re.sub(r"^var (\w+):\w+;\n", lambda found: found[0] if left[found[1]] > 1 else "", text, flags=re.M)


def _bound(lines: list[str]) -> list[str]:
    """Variables that are stored once, before all that reads them and not in an inner block, are bound there."""
    declared = {found[1] for line in lines if (found := re.fullmatch(r"var (\w+):\w+;", line))}
    stores: dict[str, list[int]] = {}
    for i, line in enumerate(lines):
        if (found := STORE.match(line)) and found[1] in declared:
            stores.setdefault(found[1], []).append(i)
    once = {name: places[0] for name, places in stores.items() if len(places) == 1}
    ends = {name: _end(lines, i) for name, i in once.items()}
    for i, line in enumerate(lines):
        for name in once.keys() & set(WORD.findall(line.partition("=")[2] if i in once.values() else line)):
            if not (line.startswith(f"var {name}:") or once[name] < i < ends[name]):
                del once[name]
    begins = {i: name for name, i in once.items()}
    return [
        f"let {line}" if i in begins else line
        for i, line in enumerate(lines)
        if not ((found := re.fullmatch(r"var (\w+):\w+;", line)) and found[1] in once)
    ]


def _end(lines: list[str], begin: int) -> int:
    """Where the block ends that a line is in."""
    depth = 0
    for i in range(begin + 1, len(lines)):
        depth -= lines[i].startswith("}")
        if depth < 0:
            return i
        depth += lines[i].endswith("{")
    return len(lines)


def _merged(lines: list[str]) -> list[str]:
    """Blocks under one condition, one behind the other, are one."""
    constant = GIVEN | CALLED | {"bitcast", "if"} | {found[1] for line in lines if (found := BINDS.match(line))}
    kept: list[str] = []
    opened: list[str] = []
    closed = ""
    for line in lines:
        if line.startswith("if(") and line == closed:
            kept.pop()
            opened.append(line)
            closed = ""
            continue
        closed = ""
        if line.startswith("}"):
            before = opened.pop()
            if line == "}" and set(WORD.findall(before)) <= constant:
                closed = before
        if line.endswith("{"):
            opened.append(line)
        kept.append(line)
    return kept


def _filled(text: str) -> str:
    """Zeros in all elements of an array, one statement."""
    types = {name: (type_, int(size)) for name, type_, size in ARRAY.findall(text)}
    lines: list[str] = []
    run: list[tuple[str, int]] = []

    def finish() -> None:
        if run and run[0][0] in types and [i for _, i in run] == list(range(types[run[0][0]][1])):
            fill = f"{run[0][0]}={types[run[0][0]][0]}();"
            lines[-len(run) :] = [] if lines[-len(run) - 1 : -len(run)] == [fill] else [fill]
        run.clear()

    for line in text.splitlines():
        found = ZERO.fullmatch(line)
        if not found or (run and (found[1] != run[0][0] or int(found[2]) == 0)):
            finish()
        lines.append(line)
        if found:
            run.append((found[1], int(found[2])))
    finish()
    return "\n".join(lines) + "\n"


def _loaded(text: str) -> str:
    """Four elements of a buffer, loaded by a function of its own."""
    made: dict[str, str] = {}

    def call(found: re.Match[str]) -> str:
        type_, buffer, place = found.groups()
        name = f"{buffer}_four"
        elements = ",".join(f"{buffer}[i+{i}]" if i else f"{buffer}[i]" for i in range(4))
        made[name] = f"fn {name}(i:i32)->vec4<{type_}>{{return vec4<{type_}>({elements});}}\n"
        return f"{name}({place})"

    text = FOUR.sub(call, text)
    begin = ENTRY.search(text)
    assert begin is not None
    return text[: begin.start()] + "".join(made.values()) + text[begin.start() :]


def _without_copies(lines: list[str]) -> list[str]:
    """Names of what is bound already are replaced by the first one."""
    bound: set[str] = set()
    same: dict[str, str] = {}
    kept = []
    for line in lines:
        if same:
            line = WORD.sub(lambda found: same.get(found[0], found[0]), line)
        found = LET.fullmatch(line)
        if found and found[2] in bound:
            same[found[1]] = found[2]
            continue
        if found:
            bound.add(found[1])
        kept.append(line)
    return kept


def _without_unused(lines: list[str]) -> list[str]:
    """Without what is bound and never used, last to first."""
    uses = Counter(word for line in lines for word in WORD.findall(line))
    kept = []
    for line in reversed(lines):
        found = LET.fullmatch(line)
        if found and uses[found[1]] == 1 and not EFFECTS.search(line):
            uses.subtract(WORD.findall(line))
            continue
        kept.append(line)
    return kept[::-1]


def _inlined(lines: list[str]) -> list[str]:
    """What is bound for the next statement alone stands there."""
    uses = Counter(word for line in lines for word in WORD.findall(line))
    kept: list[str] = []
    for line in lines:
        before = LET.fullmatch(kept[-1]) if kept else None
        if before and uses[before[1]] == 2 and not line.startswith("for") and not EFFECTS.search(before[2] + line):
            line, count = re.subn(rf"(?<![\w.]){before[1]}\b", before[2], line)
            if count:
                kept.pop()
        kept.append(line)
    return kept


def _in_fours(lines: list[str]) -> tuple[list[str], str]:
    """Chains of four products of words of two vectors are one call; and the function that is called."""

    def short(line: str) -> str:
        for found in reversed(list(LAST_OF_FOUR.finditer(line))):
            chain = "".join(found[0].replace(")[3]", f")[{i}]") for i in (3, 2, 1, 0))
            begin, end = found.start() + len(chain), found.start() + len(chain)
            if not line.startswith(chain, found.start()):
                continue
            depth = 1
            while depth:
                depth += (line[end] == "(") - (line[end] == ")")
                end += 1
            if line.startswith(")))", end):
                weights = re.sub(r"\((\w+)\)\[3\]", r"\1", re.sub(r"\b(\d+u)\b", r"vec4<u32>(\1)", found[1]))
                call = f"dz_dots({weights},{found[2]},{line[begin : end - 1]})"
                line = line[: found.start()] + call + line[end + 3 :]
        return line

    made = [short(line) for line in lines]
    return made, DOTS if made != lines else ""


def _fresh() -> Iterator[str]:
    number = 0
    while True:
        yield f"e_{number}"
        number += 1


class _Block:
    """The lines of a block, those of inner blocks among them."""

    def __init__(self, lines: list[str]) -> None:
        self.lines = lines

    def named(self, known: AbstractSet[str], fresh: Iterator[str]) -> list[str]:
        """The lines with names for what stands in them more than once, the longest first.

        Args:
            known: names that don't change while the block is run.
            fresh: names for expressions.
        """
        counts = Counter(e for line in self.lines for e in expressions(line))
        for expression in sorted((e for e, n in counts.items() if n > 1), key=lambda e: (-len(e), e)):
            pattern = re.compile(rf"(?<![\w>]){re.escape(expression)}")
            count = sum(len(pattern.findall(line)) for line in self.lines)
            if (count - 1) * (len(expression) - 2) > 14 and (
                place := self._place(expression, pattern, known)
            ) is not None:
                name = next(fresh)
                self.lines = [pattern.sub(name, line) for line in self.lines]
                self.lines.insert(place, f"let {name}={expression};")
        return self._inner(known, fresh)

    def _place(self, expression: str, pattern: re.Pattern[str], known: AbstractSet[str]) -> int | None:
        """Where in this block, not an inner one, the expression can be bound: before its first use."""
        missing = set(WORD.findall(expression)) - known - CALLED - {"bitcast"}
        depth, place = 0, 0
        for i, line in enumerate(self.lines):
            if line.startswith("}"):
                depth -= 1
            if depth == 0 and not line.startswith("}"):
                place = i
            if pattern.search(line):
                return None if missing else place
            if depth == 0 and (found := LET.fullmatch(line)):
                missing.discard(found[1])
            if line.endswith("{"):
                depth += 1
        return None

    def _inner(self, known: AbstractSet[str], fresh: Iterator[str]) -> list[str]:
        known, done, inner = set(known), list[str](), list[str]()
        depth = 0
        counter: set[str] = set()
        for line in self.lines:
            if line.startswith("}"):
                depth -= 1
                if depth == 0:
                    done += _Block(inner).named(known | counter, fresh)
                    inner = []
            if depth:
                inner.append(line)
            else:
                done.append(line)
                if found := LET.fullmatch(line):
                    known.add(found[1])
            if line.endswith("{"):
                if depth == 0:
                    counter = set(re.findall(r"^for\(var (\w+):", line))
                depth += 1
        return done


def expressions(line: str) -> Iterator[str]:
    """Bracketed expressions of a line, and calls of CALLED, that read nothing a shader can write."""
    if line.startswith(("@", "var<")):
        return
    opened: list[int] = []
    for i, letter in enumerate(line):
        if letter == "(":
            opened.append(i)
        elif letter == ")" and opened:
            begin = opened.pop()
            callee = CALLEE.search(line, 0, begin)
            if callee and callee[0] not in CALLED:
                continue
            expression = line[callee.start() if callee else begin : i + 1]
            if len(expression) >= SHORTEST and "[" not in expression:
                yield expression
