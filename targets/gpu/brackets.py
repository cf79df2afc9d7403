"""Expressions of WGSL without the brackets that change nothing: TVM writes one around every operation."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

TOKEN = re.compile(
    r"(?:bitcast|array|vec[234])<[\w,<>]*?>(?=\()|[A-Za-z_]\w*|0x[0-9a-f]+u?|\d+(?:\.\d*)?(?:e-?\d+)?[fiu]?"
    r"|<<|>>|[<>=!]=|&&|\|\||\+\+|\.\w+|."
)
MUL, ADD = frozenset("*/%"), frozenset("+-")
RELATIONS = frozenset(("<", "<=", ">", ">=", "==", "!="))
OPERATORS = MUL | ADD | RELATIONS | {"<<", ">>", "&", "|", "^", "&&", "||"}
SEPARATORS = frozenset((",", "=", ";", ":", "{", "}", "return"))
ENDS = {"(": ")", "[": "]"}
OPERAND = re.compile(r"^(?!return$).*[\w\])]$|\w<.*>$")
"""The end of what can be called, or have elements."""
ANGLED = frozenset(("<", "<=", ">", ">=", "<<", ">>"))
"""What begins or ends like the arguments of a type."""


@dataclass(eq=False)
class _Group:
    """What stands in a pair of brackets: its text, its operators outside of brackets, and whether one is a sign."""

    text: str = ""
    operators: set[str] = field(default_factory=set)
    signed: bool = False


def unbracketed(line: str) -> str:
    """A statement in which brackets stand only where they are needed.

    The order of operations stays, that of sums too. Comparisons keep their brackets between others and in arguments,
    where `<` and `>` may look like those of a type.
    """
    return _Reader(TOKEN.findall(line)).group("").text


class _Reader:
    def __init__(self, tokens: list[str]) -> None:
        self._tokens = tokens
        self._at = 0

    def group(self, end: str, strict: bool = False) -> _Group:
        """All up to the bracket `end`.

        Args:
            end: a closing bracket, or an empty text for the end of the statement.
            strict: whether comparisons that stand alone keep their brackets.
        """
        parts: list[str | _Group] = []
        while self._at < len(self._tokens) and self._tokens[self._at] != end:
            token = self._tokens[self._at]
            self._at += 1
            before = parts[-1] if parts else ""
            if token in ENDS:
                called = isinstance(before, _Group) or bool(OPERAND.search(before))
                inner = self.group(ENDS[token], called and before not in ("if", "for"))
                self._at += 1
                parts.append(f"{token}{inner.text}{ENDS[token]}" if called else inner)
            elif token != " ":
                parts.append(token)
        return self._joined(parts, strict)

    def _joined(self, parts: list[str | _Group], strict: bool) -> _Group:
        whole = _Group()
        for i, part in enumerate(parts):
            left = parts[i - 1] if i else ","
            right = parts[i + 1] if i + 1 < len(parts) else ","
            after_operator = isinstance(left, str) and (left in OPERATORS or left in SEPARATORS or left == "!")
            if isinstance(part, _Group):
                unary = i > 0 and left in ("-", "!") and (i == 1 or parts[i - 2] in OPERATORS | SEPARATORS)
                if _needless(part, left, right, unary, strict):
                    whole.operators |= part.operators
                    whole.signed |= part.signed
                    whole.text += _apart(whole.text, part.text)
                else:
                    whole.text += f"({part.text})"
            elif part in OPERATORS and after_operator and part in ("-", "&"):
                whole.signed = True
                whole.text += _apart(whole.text, part)
            else:
                if part in OPERATORS:
                    whole.operators.add(part)
                whole.text += _apart(whole.text, part)
        return whole


def _apart(text: str, more: str) -> str:
    """What comes next, with a space where it would run into what is there: two words, or two signs."""
    if not text:
        return more
    words = (text[-1].isalnum() or text[-1] == "_") and (more[0].isalnum() or more[0] == "_")
    return f" {more}" if words or (text[-1] == "-" and more[0] == "-") else more


def _needless(group: _Group, left: object, right: object, unary: bool, strict: bool) -> bool:
    """Whether the brackets of a group change nothing between these neighbours."""
    if isinstance(left, _Group) or isinstance(right, _Group) or str(right)[0] in ".[(":
        return not group.operators and not group.signed and not isinstance(left, _Group)
    alone_left, alone_right = left in SEPARATORS, right in SEPARATORS
    if unary or (group.signed and not alone_left):
        return not group.operators and not group.signed
    if not group.operators:
        return True
    if alone_left and alone_right:
        return not (strict and group.operators & ANGLED)
    if group.operators <= MUL:
        return (alone_left or left in ADD | RELATIONS) and (alone_right or right in MUL | ADD | RELATIONS)
    if group.operators <= MUL | ADD:
        return (alone_left or left in RELATIONS) and (alone_right or right in ADD | RELATIONS)
    return False
