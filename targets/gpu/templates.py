"""Shaders that differ in numbers only, written once: kernels for matrices of different sizes are often such."""

from __future__ import annotations

import re
from collections.abc import Mapping

NUMBER = re.compile(r"(?<![\w.])(?:0|[1-9]\d*)(?!\d)")
PLACE = "$"
"""Stands for a number; WGSL has no such sign."""


def templates(texts: Mapping[str, str]) -> tuple[list[str], dict[str, list[int]]]:
    """Texts with places, and name -> which of them, then the numbers that go to its places in order."""
    groups: dict[str, list[str]] = {}
    for name, text in texts.items():
        groups.setdefault(NUMBER.sub(PLACE, text), []).append(name)
    made: list[str] = []
    told: dict[str, list[int]] = {}
    for names in groups.values():
        numbers = [NUMBER.findall(texts[name]) for name in names]
        varying = [len(set(column)) > 1 for column in zip(*numbers, strict=True)]
        for name, own in zip(names, numbers, strict=True):
            told[name] = [len(made), *(int(n) for n, varies in zip(own, varying, strict=True) if varies)]
        made.append(_with_places(texts[names[0]], varying))
    return made, told


def _with_places(text: str, varying: list[bool]) -> str:
    """The text with PLACE for those of its numbers that vary."""
    places = iter(varying)
    return NUMBER.sub(lambda found: PLACE if next(places) else found[0], text)
