"""What each step of the engine reads: who is served, who waits, and who gives up pages when they run out.

Nothing here knows what a page holds or how a row is computed. Orca (Yu et al., OSDI 2022) describes scheduling step by
step, vLLM (Kwon et al., SOSP 2023) pages and preemption by reading again.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field

from deepzig.artifacts.manifest import Bounds
from deepzig.errors import DeepZigError
from deepzig.runtime.pages import PagePool

from .prefix import PrefixTree
from .sequence import DECODE, PREFILL, Sequence


@dataclass(eq=False)
class Work:
    """Consecutive rows of a sequence in a call.

    Attributes:
        sequence: whose.
        begin: position of the first row.
        end: after the last token that is known.
        guesses: read behind it.
        draws: whether tokens are drawn after it: it ends with the last token that is known.
        followers: sequences that wait for this prompt and draw from its last row too.
    """

    sequence: Sequence
    begin: int
    end: int
    guesses: list[int]
    draws: bool
    followers: list[Sequence] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """How many rows it brings."""
        return self.end - self.begin + len(self.guesses)


@dataclass
class Plan:
    """What a step does.

    Attributes:
        copies: pages that are copied first, from and to.
        calls: form -> its rows.
    """

    copies: list[tuple[int, int]] = field(default_factory=list)
    calls: dict[str, list[Work]] = field(default_factory=lambda: {DECODE: [], PREFILL: []})

    def __bool__(self) -> bool:
        return any(self.calls.values())


class Scheduler:
    """Sequences that are served and that wait.

    Args:
        bounds: of the artifact's calls.
        pool: pages for all.
        tree: pages of prompts that were read; None if no prompt shall use another's.
        step_rows: rows of prompts and answers that a step reads, unless one chunk alone has more. Fewer make answers
            run more evenly beside long prompts; how prompts are cut does not change.
        most: the most sequences that are served at a time.

    Attributes:
        waiting: who waits, in order.
        running: who is served.
        preemptions: how often pages were taken from a sequence.
    """

    def __init__(self, bounds: Bounds, pool: PagePool, tree: PrefixTree | None, step_rows: int, most: int) -> None:
        self._bounds, self._pool, self._tree = bounds, pool, tree
        self._step_rows, self._most = step_rows, most
        self._turn = 0
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.preemptions = 0

    def add(self, sequence: Sequence) -> None:
        """Someone new, or someone whose pages were taken."""
        insort(self.waiting, sequence, key=lambda s: s.rank)

    def remove(self, sequence: Sequence) -> None:
        """Someone who is done: the pages go back."""
        for place in (self.running, self.waiting):
            if sequence in place:
                place.remove(sequence)
        self._release(sequence)

    def fork(self, leader: Sequence, followers: Iterable[Sequence]) -> None:
        """Serve sequences with the pages of one that has read the same prompt."""
        for sequence in followers:
            self.waiting.remove(sequence)
            self._pool.share(leader.pages)
            sequence.pages, sequence.read, sequence.leader = list(leader.pages), leader.read, None
            self.running.append(sequence)

    def extend(self, sequence: Sequence, count: int) -> int:
        """How many of `count` tokens behind the last have room in the cache, without taking anybody's; has it ready."""
        size = self._pool.page_size
        while count:
            needed = -(-(len(sequence.tokens) + count) // size) - len(sequence.pages)
            if needed <= 0:
                break
            with suppress(DeepZigError):
                sequence.pages += self._pool.take(needed)
                break
            count -= 1
        return count

    def keep(self, sequence: Sequence) -> None:
        """Let others use the pages of a prompt that were read."""
        count = min(sequence.read, sequence.shareable(self._bounds)) // self._pool.page_size
        if self._tree is None or not count:
            return
        pages = sequence.pages[:count]
        tokens = sequence.request.prompt[: count * self._pool.page_size]
        self._tree.insert(tokens, pages, sequence.drafts, sequence.request.salt)
        sequence.pages[:count] = pages

    def plan(self) -> Plan:
        """The next step; empty if nobody can be served."""
        self._turn += 1
        self._admit()
        plan = Plan()
        # answers before prompts, so that they go on evenly; of those too many for a call, who waited longest
        for sequence in sorted(self.running, key=lambda s: (s.read < s.prompt, s.turn, s.rank)):
            if sequence in self.running:  # it may have lost its pages to one before it
                self._place(sequence, plan)
        if not plan and self.running:
            # each waits for pages of the others: the last comes back later
            self._preempt(max(self.running, key=lambda s: s.rank))
        return plan

    def _place(self, sequence: Sequence, plan: Plan) -> None:
        """Add what a sequence reads next, if there is room in the call and in the cache."""
        bounds = self._bounds
        self._look_up(sequence)
        stretch = sequence.stretch(bounds)
        call = plan.calls[stretch.form]
        taken, rows = sum(work.rows for work in call), stretch.end - stretch.begin
        if len(call) == bounds.batch or taken + rows > bounds.rows:
            return
        in_step = sum(work.rows for works in plan.calls.values() for work in works)
        if sequence.read < sequence.prompt and in_step and in_step + rows > self._step_rows:
            return
        draws = stretch.end == len(sequence.tokens) and sequence.request.reading is None
        guesses = sequence.guesses[: bounds.rows - taken - rows] if draws else []
        planned = {work.sequence for works in plan.calls.values() for work in works}
        if guesses and not self._reserve(sequence, stretch.end + len(guesses), set(self.running), plan):
            guesses = []
        if not guesses and not self._reserve(sequence, stretch.end, planned, plan):
            return
        sequence.turn = self._turn
        work = Work(sequence, stretch.begin, stretch.end, guesses, draws)
        if draws:
            work.followers = [s for s in self.waiting if s.leader is sequence]
        call.append(work)

    def _look_up(self, sequence: Sequence) -> None:
        """Take over pages of the prompt that someone else has read meanwhile."""
        size, read = self._pool.page_size, sequence.read
        # the last row is read in any case: a token is drawn from it
        end = min(sequence.shareable(self._bounds), (sequence.prompt - 1) // size * size)
        reading = sequence.request.reading
        if self._tree is None or read % size or read >= end or (reading and reading.logits):
            return
        found = self._tree.match(sequence.request.prompt, read, end, sequence.drafts, sequence.request.salt)
        if found:
            own = sequence.pages[read // size :]
            sequence.pages[read // size :] = found
            self._pool.give_back(own)
            sequence.read = read + len(found) * size
            sequence.found += len(found) * size

    def _admit(self) -> None:
        """Serve those who waited, in order: who does not fit lets nobody by."""
        while len(self.running) < self._most:
            sequence = next((s for s in self.waiting if s.leader is None), None)
            if sequence is None:
                return
            self._look_up(sequence)
            tokens = len(sequence.tokens) + (sequence.request.reading is None)  # one to draw, or none
            needed = -(-tokens // self._pool.page_size) - len(sequence.pages)
            while needed > self._pool.free and self._preempt_for(sequence.request.priority):
                pass
            if needed > self._pool.free:
                self._release(sequence)
                return
            self.waiting.remove(sequence)
            self.running.append(sequence)

    def _preempt_for(self, priority: int) -> bool:
        """Take the pages of someone who is less urgent, if there is one."""
        others = [s for s in self.running if s.request.priority > priority]
        if others:
            self._preempt(max(others, key=lambda s: s.rank))
        return bool(others)

    def _reserve(self, sequence: Sequence, end: int, spared: set[Sequence], plan: Plan) -> bool:
        """Have pages of one's own for tokens up to `end`, if need be those of sequences that come later.

        Args:
            sequence: who needs them.
            end: tokens in all.
            spared: whose pages are not taken.
            plan: gets the copy of a page that others hold too.
        """
        size = self._pool.page_size
        at = sequence.read // size
        shared = at < len(sequence.pages) and self._pool.holders(sequence.pages[at]) > 1
        needed = max(-(-end // size) - len(sequence.pages), 0) + shared
        while True:
            try:
                fresh = self._pool.take(needed) if needed else []
                break
            except DeepZigError:
                later = [s for s in self.running if s.rank > sequence.rank and s.pages and s not in spared]
                if not later:
                    return False
                self._preempt(max(later, key=lambda s: s.rank))
        if shared and self._pool.holders(sequence.pages[at]) == 1:  # the others lost theirs just now
            self._pool.give_back([fresh.pop()])
        elif shared:
            page = fresh.pop()
            plan.copies.append((sequence.pages[at], page))
            self._pool.give_back([sequence.pages[at]])
            sequence.pages[at] = page
        sequence.pages += fresh
        return True

    def _preempt(self, sequence: Sequence) -> None:
        """Take a sequence's pages; it waits, at its old place, and will be read again."""
        self.preemptions += 1
        self.running.remove(sequence)
        self._release(sequence)
        self.add(sequence)

    def _release(self, sequence: Sequence) -> None:
        pages, sequence.pages = sequence.pages, []
        sequence.read, sequence.found, sequence.guesses = 0, 0, []
        self._pool.give_back(pages)
