"""Unsigned 64-bit integers as pairs of 32-bit words: not every GPU language has wider ones."""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx
from tvm.script import tirx as T

from deepzig.targets.emit import Buffer, Expr, store

from .emit import device, registers, settled, shuffle_xor


@dataclass(frozen=True)
class Wide:
    """An integer modulo 2^64.

    Attributes:
        low: u32.
        high: u32.
    """

    low: Expr
    high: Expr

    @classmethod
    def of(cls, low: Expr, high: Expr | None = None) -> Wide:
        """Emit the binding of both words."""
        return cls(settled(low), T.uint32(0) if high is None else settled(high))

    @classmethod
    def product(cls, a: Expr, b: Expr) -> Wide:
        """Emit the product of two u32."""
        return cls.of(a * b, device("multiply_high", a, b, returns="uint32"))

    def __add__(self, other: Wide) -> Wide:
        low = settled(self.low + other.low)
        return Wide.of(low, self.high + other.high + T.Cast("uint32", low < other.low))

    def __lt__(self, other: Wide) -> Expr:
        return tirx.any(self.high < other.high, tirx.all(self.high == other.high, self.low < other.low))

    def shifted(self, bits: int) -> Wide:
        """This, shifted right by 1 to 31 bits."""
        moved = T.shift_left(self.high, T.uint32(32 - bits))
        return Wide.of(
            T.bitwise_or(T.shift_right(self.low, T.uint32(bits)), moved), T.shift_right(self.high, T.uint32(bits))
        )

    def summed(self, lanes: int) -> Wide:
        """Emit the sum over each `lanes` consecutive threads of the subgroup."""
        whole = self
        while lanes > 1:
            lanes //= 2
            whole = whole + Wide(shuffle_xor(whole.low, lanes), shuffle_xor(whole.high, lanes))
        return whole

    def kept(self) -> WideVariable:
        """Emit a variable with this value."""
        words = WideVariable(registers(2, dtype="uint32"))
        words.set(self)
        return words


@dataclass(frozen=True)
class WideVariable:
    """A local variable.

    Attributes:
        words: u32[2].
    """

    words: Buffer

    def set(self, value: Wide) -> None:
        """Emit the assignment."""
        store(self.words, value.low, 0)
        store(self.words, value.high, 1)

    def get(self) -> Wide:
        """Emit the reading."""
        return Wide.of(self.words[0], self.words[1])


def select(condition: Expr, yes: Wide, no: Wide) -> Wide:
    """One of two."""
    return Wide.of(T.Select(condition, yes.low, no.low), T.Select(condition, yes.high, no.high))
