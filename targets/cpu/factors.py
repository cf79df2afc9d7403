"""Matrices that a kernel makes for products of its own, in the form that the products take.

    form     left [row, K / step]    right [N16, K / step, 16]    products
    floats   f32, step 1             f32                          fused multiply-adds
    pairs    u32, step 2             u32                          `vdpbf16ps`

A word of pairs has bf16 numbers that are neighbours along K, as in `layout`. What is stored there is rounded, to
nearest even; sums are f32 in either form.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from deepzig.targets.emit import Buffer, Expr, either, loop, store

from . import bf16
from .cache import IN_ORDER, Place, columns, half_bits, narrow
from .emit import workspace
from .features import Vectors
from .layout import LANES, blocks, padded
from .product import Columns, Input, Output, rows_of, tile
from .vector import at, dtype, transposed, widen_high, words


@dataclass(frozen=True)
class Form:
    """What the factors of products consist of.

    Attributes:
        dtype: TVM's type of what is stored.
        step: elements along the inner dimension in one of those.
        wdtype: element type.
        multiply: emits the products of a tile; see `product.tile`.
        weights: element types of packed weights that are multiplied as they are.
        begin: emits what a kernel needs once.
    """

    dtype: str
    step: int
    wdtype: str
    multiply: Callable[..., list[list[Buffer]]]
    weights: frozenset[str]
    begin: Callable[[], None] = lambda: None


FLOATS = Form("float32", 1, "f32", tile, frozenset({"f32", "bf16", "f16"}))
PAIRS = Form("uint32", 2, "bf16", bf16.pairs_tile, frozenset({"bf16"}), bf16.instructions)


def form_of(cdtype: str, vectors: Vectors) -> Form:
    """The form of what is made of cache rows."""
    return PAIRS if cdtype == "bf16" and vectors.pairs else FLOATS


@dataclass(frozen=True)
class LeftMatrix:
    """Rows.

    Attributes:
        form: of its elements.
        stored: [rows, padded K / step].
    """

    form: Form
    stored: Buffer

    @classmethod
    def of(cls, form: Form, rows: int | Expr, size: int) -> LeftMatrix:
        """Emit the allocation of rows of `size` elements."""
        return cls(form, workspace(rows, padded(size) // form.step, dtype=form.dtype))

    @property
    def elements(self) -> Input:
        """The rows as products read them."""
        return rows_of(self.stored)

    def put(self, row: Expr, block: Expr, value: Expr) -> None:
        """Emit the storing of the elements 16 * block and after, f32x16."""
        lanes = LANES // self.form.step
        if self.form is PAIRS:
            value = T.reinterpret(dtype("uint32", lanes), narrow(T.bind(value), "bf16", LANES))
        store(self.stored, value, row, at(block * lanes, lanes))


@dataclass(frozen=True)
class RightMatrix:
    """Packed columns.

    Attributes:
        form: of its elements.
        size: elements along the inner dimension.
        stored: [N16, ceil(K / step), 16].
    """

    form: Form
    size: int
    stored: Buffer

    @classmethod
    def of(cls, form: Form, count: int, size: int) -> RightMatrix:
        """Emit the allocation of `count` columns."""
        return cls(form, size, workspace(blocks(count), -(-size // form.step), LANES, dtype=form.dtype))

    def columns(self, taken: Sequence[Expr], size: Expr = None) -> Columns:
        """Some blocks, of which only the first `size` elements count, if given."""
        size = self.size if size is None else size
        return Columns(self.stored, [(c,) for c in taken], size, self.form.wdtype, streamed=False)

    def elements(self, column: Expr) -> Any:
        """A column as a row of the left matrix."""
        return lambda k: self.stored[column // LANES, k, column % LANES]

    def get(self, block: Expr, k: Expr) -> Expr:
        """Element k of a block's columns, f32x16."""
        stored = self.stored[block, k // self.form.step, at(0)]
        if self.form is FLOATS:
            return stored
        low = T.shift_right(stored, T.broadcast(T.Cast("uint32", k % 2 * 16), LANES))
        return widen_high(T.shift_left(low, words(16)), "bf16")

    def put(self, block: Expr, k: Expr, value: Expr) -> None:
        """Emit the storing of element k, f32x16; of a pair the even one is to come first, and clears the odd one."""
        if self.form is FLOATS:
            store(self.stored, value, block, k, at(0))
            return
        bits = T.bind(half_bits(T.bind(value), "bf16", LANES))
        place = block, k // 2, at(0)
        with either(k % 2 == 0) as (even, odd):
            with even:
                store(self.stored, bits, *place)
            with odd:
                store(self.stored, T.bitwise_or(self.stored[place], T.shift_left(bits, words(16))), *place)

    def rows(self, taken: Sequence[Expr]) -> Output:
        """What puts each row of a product into these blocks, its number along the inner dimension."""

        def write(row: Expr, sums: Sequence[Buffer]) -> None:
            for block, total in zip(taken, sums, strict=True):
                self.put(block, row, total[at(0)])

        return write

    def put_cached(self, cache: Buffer, places: Sequence[Place], block: Expr, cdtype: str, width: int) -> None:
        """Emit the storing of 16 cache rows as the columns of a block, all `width` elements.

        Args:
            cache: the pages.
            places: of the rows.
            block: of this matrix.
            cdtype: element type of the cache.
            width: columns of its rows.
        """
        halves = dtype("uint32", LANES // 2)
        with loop(blocks(width)) as c:
            if self.form is FLOATS:
                rows = [T.bind(columns(cache, place, c, cdtype, width)) for place in places]
                order = range(LANES) if cdtype in IN_ORDER else [*range(0, LANES, 2), *range(1, LANES, 2)]
            else:
                pairs = [T.reinterpret(halves, cache[(*place, at(c * LANES))]) for place in places]
                # rows 8 apart side by side, for that is how their columns are to lie
                apart = zip(pairs[: LANES // 2], pairs[LANES // 2 :], strict=True)
                rows = [T.bind(T.vectorcombine(dtype("uint32"), *both)) for both in apart]
                order = range(LANES // 2)
            for i, column in zip(order, transposed(rows), strict=True):
                store(self.stored, column, block, c * len(order) + i, at(0))
