"""Bytes and counts as people read and write them."""

from __future__ import annotations

import re

BINARY = ("B", "KiB", "MiB", "GiB", "TiB")
FACTORS = {"": 1, **{f"{p}{unit}": base**power
                     for unit, base in (("B", 1000), ("iB", 1024))
                     for power, p in enumerate(("", "K", "M", "G", "T")) if p or unit == "B"}}  # fmt: skip
"""Unit -> bytes: B, KB, KiB, ..., TiB."""


def size(count: float) -> str:
    """Bytes with three digits and a binary unit: 1.23 GiB."""
    power = 0
    while round(count) >= 1000 and power < len(BINARY) - 1:
        count, power = count / 1024, power + 1
    return f"{_digits(count) if power else f'{count:.0f}'} {BINARY[power]}"


def count(number: float) -> str:
    """A number of things with three digits: 37.6 B, 938 K, 512."""
    for factor, word in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if number >= factor * 0.9995:
            return f"{_digits(number / factor)} {word}"
    return f"{number:.0f}"


def _digits(number: float) -> str:
    """Three digits, or all before the point."""
    return f"{number:.{2 if number < 9.995 else 1 if number < 99.95 else 0}f}"


def parse_size(text: str) -> int | None:
    """The bytes that a text such as 16GiB or 1.5 TB means; none if it means none."""
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?)\s*([A-Za-z]*)", text.strip())
    factors = {unit.lower(): factor for unit, factor in FACTORS.items()}
    if match is None or match[2].lower() not in factors:
        return None
    return int(float(match[1]) * factors[match[2].lower()])
