"""Which tokens of a row may be drawn: thresholds are found by narrowing a range of keys instead of a sort.

A block of threads has the row. It reads it until few tokens are left to decide about, whose keys it keeps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from deepzig.sampling import EXP2_COEFFICIENTS
from deepzig.targets.emit import Buffer, Expr, loop, store, when

from .device import SUBGROUP
from .emit import Threads, barrier, device, registers, settled, shared, subgroup_sum, variable
from .greatest import INFINITE
from .wide import Wide, WideVariable, select

HALVINGS = 32.0
"""Beyond as many, a weight is 0."""
SECTIONS = 4
"""Parts that the range of a threshold is cut into at a time."""
EVEN_TURNS = 3
"""Turns in which the parts are equal distances of gaps; then they are equal numbers of keys."""
KEY_TURNS = 16
"""Turns that narrow 2^31 keys to one."""
KEPT = 2048
"""The most keys that a block keeps in shared memory."""


def weight_of(gap: Expr, scale: Expr) -> Expr:
    """Emit 2^31 * 2^(-gap * scale), u32, in fixed point."""
    halvings = T.min(gap * scale, T.float32(HALVINGS))
    fixed = settled(T.Cast("uint32", halvings * T.float32(2.0**24)))
    part = T.bind(T.bitwise_and(fixed, T.uint32(2**24 - 1)))
    mantissa = T.uint32(EXP2_COEFFICIENTS[-1])
    for coefficient in EXP2_COEFFICIENTS[-2::-1]:
        mantissa = settled(T.uint32(coefficient) - Wide.product(mantissa, part).shifted(24).low)
    whole = T.bind(T.shift_right(fixed, T.uint32(24)))
    moved = T.shift_right(mantissa, T.min(whole, T.uint32(31)))
    return settled(T.Select(whole < T.uint32(HALVINGS), moved, T.uint32(0)))


@dataclass(frozen=True)
class Search:
    """A threshold being searched: the range that it lies in, the same in all threads but for `own`.

    Attributes:
        bounds: i32[4]: the key that it is above, the greatest that it can be, how many tokens' keys lie between, and
            how many of those this thread has read.
        below: the amount of the tokens up to the lower bound.
        target: the amount that is to be reached.
        weighted: whether the amount of a token is its weight; else it is 1.
    """

    bounds: Buffer
    below: WideVariable
    target: WideVariable
    weighted: bool

    @property
    def low(self) -> Expr:
        """The key that the threshold is above."""
        return self.bounds[0]

    @property
    def high(self) -> Expr:
        """The greatest key that it can be."""
        return self.bounds[1]

    @property
    def count(self) -> Expr:
        """Tokens with keys in the range."""
        return self.bounds[2]

    def has(self, key: Expr) -> Expr:
        """Whether a key is in the range."""
        return tirx.all(key > self.low, key <= self.high)

    def set(self, *bounds: Expr) -> None:
        """Emit the assignment of all bounds."""
        for i, value in enumerate(bounds):
            store(self.bounds, value, i)


class Choice:
    """The tokens that may still be drawn: those whose key, the bits of their gap to the best logit, is within a limit.

    Attributes:
        t: the threads that have the row.
        vocab: how many tokens.
        ahead: logits that a thread reads at once.
        scale: halvings of the weight per gap.
        gap: of a token.
        limit: i32[1], the greatest key.
        sums: u32[12, 32], shared, room for a number of each subgroup.
    """

    def __init__(self, t: Threads, vocab: int, ahead: int, scale: Expr, gap: Callable[[Expr], Expr]) -> None:
        self.t, self.vocab, self.ahead, self.scale, self.gap = t, vocab, ahead, scale, gap
        self.limit = variable(T.int32(INFINITE), "int32")
        self.sums = shared(3 * SECTIONS, SUBGROUP, dtype="uint32")
        self._keys = shared(KEPT, dtype="int32")
        self._counts = shared(t.count, dtype="int32")

    def key(self, j: Expr) -> Expr:
        """Emit the key of a token; gaps are not negative, so their bits order them."""
        return settled(T.reinterpret("int32", self.gap(j)))

    def weight(self, key: Expr) -> Expr:
        """Emit the weight of a token."""
        return weight_of(T.reinterpret("float32", key), self.scale)

    def restrict(self, weighted: bool, target: Callable[[Wide], Wide]) -> None:
        """Emit what lowers the limit to the smallest key up to which the amounts reach a target.

        Args:
            weighted: whether the amount of a token is its weight; else it is 1.
            target: from the amount of all tokens within the limit to how much of it is to be reached.
        """
        zero = Wide.of(T.uint32(0))
        search = Search(registers(4, dtype="int32"), zero.kept(), zero.kept(), weighted)
        search.set(T.int32(-1), self.limit[0], T.int32(self.vocab), T.int32(0))
        reach = device("divide", T.float32(HALVINGS), self.scale, returns="float32")

        def row(account: Callable[[Expr], None]) -> None:
            each_read(self.t, self.vocab, self.ahead, self.key, lambda _, key: account(key))

        with loop(EVEN_TURNS) as turn:
            least, most = (
                T.reinterpret("float32", key)
                for key in (T.max(search.low, T.int32(0)), T.min(search.high, T.int32(INFINITE - 1)))
            )
            step = settled((T.min(most, reach) - least) * T.float32(1 / SECTIONS))
            keys = [T.reinterpret("int32", least + step * T.float32(i)) for i in range(1, SECTIONS)]
            cuts = [settled(T.max(search.low, T.min(search.high, key))) for key in keys]
            self._narrow(search, cuts, row, lambda total: self._aim(search, turn, target(total)))
        kept = T.bind(search.count)
        few = T.bind(kept <= T.int32(KEPT))
        self._keep(search, few)

        def rest(account: Callable[[Expr], None]) -> None:
            with when(few), self.t.each(T.Cast("int64", kept)) as i:
                account(T.bind(self._keys[i]))
            with when(tirx.Not(few)):
                row(account)

        with loop(KEY_TURNS):
            width, part = T.bind(search.high - search.low), T.int32(SECTIONS)
            whole, left = settled(T.truncdiv(width, part)), settled(T.truncmod(width, part))
            cuts = [
                settled(search.low + whole * i + T.truncdiv(left * i, part)) for i in map(T.int32, range(1, SECTIONS))
            ]
            self._narrow(search, cuts, rest, lambda total: None)
        store(self.limit, search.high, 0)

    @staticmethod
    def _aim(search: Search, turn: Expr, target: Wide) -> None:
        with when(turn == 0):
            search.target.set(target)

    def _narrow(
        self,
        search: Search,
        cuts: list[Expr],
        each: Callable[[Callable[[Expr], None]], None],
        found: Callable[[Wide], None],
    ) -> None:
        """Emit the choice of the section, between cuts of the range, that the threshold is in.

        Args:
            search: changed.
            cuts: SECTIONS - 1 keys in the range, in order.
            each: emits the accounting of each key of a thread's tokens.
            found: called with the amount up to the upper bound before the choice.
        """
        ends = [*cuts, T.bind(search.high)]
        low, before = T.bind(search.low), search.below.get()
        per = 3 if search.weighted else 1
        amounts = registers(per * SECTIONS, dtype="uint32")
        for i in range(per * SECTIONS):
            store(amounts, T.uint32(0), i)
        active = settled(tirx.all(ends[-1] - low > 1, search.count > 1))

        def account(key: Expr) -> None:
            with when(search.has(key)):
                parts = [T.uint32(1)]
                if search.weighted:
                    weight = self.weight(key)
                    parts += [T.bitwise_and(weight, T.uint32(0xFFFF)), T.shift_right(weight, T.uint32(16))]
                for i, end in enumerate(ends):
                    with when(key <= end):
                        for k, part in enumerate(parts):
                            store(amounts, amounts[per * i + k] + part, per * i + k)

        with when(active):
            each(account)
        own = [T.bind(T.Cast("int32", amounts[per * i])) for i in range(SECTIONS)]
        counts, masses = self._totals(amounts, per)
        reached = [before + mass for mass in masses]
        found(reached[-1])
        target = search.target.get()
        bounds = [low, *ends]
        best: Any = None
        for i in reversed(range(SECTIONS)):
            section = (
                bounds[i],
                bounds[i + 1],
                counts[i] - counts[i - 1] if i else counts[0],
                own[i] - own[i - 1] if i else own[0],
            )
            floor = reached[i - 1] if i else before
            if best is None:
                best = (*map(settled, section), floor)
                continue
            enough = settled(tirx.Not(reached[i] < target))
            best = (
                *(settled(T.Select(enough, a, b)) for a, b in zip(section, best, strict=False)),
                select(enough, floor, best[-1]),
            )
        with when(active):
            search.set(*best[:-1])
            search.below.set(best[-1])

    def _totals(self, amounts: Buffer, per: int) -> tuple[list[Expr], list[Wide]]:
        """Emit the block's sums: of each section the count, i32, and the amount.

        Args:
            amounts: u32[per * SECTIONS], of each section the count and, if there are 3, the sums of both halves of the
                weights, which fit in 32 bits for a subgroup.
            per: 1 or 3.
        """
        t, parts = self.t, self.t.count // SUBGROUP
        values = [subgroup_sum(amounts[i]) for i in range(per * SECTIONS)]
        lanes = 1 << (parts - 1).bit_length()
        if parts > 1:
            barrier()
            with when(t.lane == 0):
                for i, value in enumerate(values):
                    store(self.sums, value, i, t.subgroup)
            barrier()
            lane = t.lane % lanes
            inside, there = lane < parts, T.min(lane, parts - 1)
            values = [T.bind(T.Select(inside, self.sums[i, there], T.uint32(0))) for i in range(per * SECTIONS)]
        counts = [subgroup_sum(values[per * i], lanes) for i in range(SECTIONS)]
        if per == 1:
            masses = list(map(Wide.of, counts))
        else:
            masses = [halves(*values[per * i + 1 : per * i + 3]).summed(lanes) for i in range(SECTIONS)]
        return [T.bind(T.Cast("int32", count)) for count in counts], masses

    def _keep(self, search: Search, few: Expr) -> None:
        """Emit the copying of the range's keys to shared memory, if they are few."""
        t = self.t
        barrier()
        store(self._counts, search.bounds[3], t.thread)
        barrier()
        place = variable(T.int32(0), "int32")
        with loop(t.count // SUBGROUP) as other, when(other < t.subgroup), loop(SUBGROUP) as lane:
            store(place, place[0] + self._counts[other * SUBGROUP + lane], 0)
        with loop(SUBGROUP) as lane, when(lane < t.lane):
            store(place, place[0] + self._counts[t.subgroup * SUBGROUP + lane], 0)

        def keep(_: Expr, key: Expr) -> None:
            with when(search.has(key)):
                store(self._keys, key, place[0])
                store(place, place[0] + 1, 0)

        with when(few):
            each_read(t, self.vocab, self.ahead, self.key, keep)
        barrier()


def each_read(
    t: Threads, size: int, ahead: int, read: Callable[[Expr], Expr], body: Callable[[Expr, Expr], None]
) -> None:
    """Emit body(i, read(i)) for i = thread, thread + count, ... below `size`, of which `ahead` are read at once."""
    with loop(-(-size // (t.count * ahead))) as turn:
        places = [T.bind((turn * ahead + i) * t.count + t.thread) for i in range(ahead)]
        values = [read(T.min(place, T.int64(size - 1))) for place in places]
        for place, value in zip(places, values, strict=True):
            with when(place < size):
                body(place, value)


def halves(low: Expr, high: Expr) -> Wide:
    """Emit low + 2^16 high."""
    return Wide.of(low) + Wide.of(T.shift_left(high, T.uint32(16)), T.shift_right(high, T.uint32(16)))
