"""The engine: many requests at once on one model.

One thread plans a step, has it read, draws tokens and hands them out; then the next. What a request is answered depends
on nothing but the request: neither on who else is served, nor on what was found read, nor on having been preempted.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Hashable
from collections.abc import Sequence as List
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from deepzig.artifacts.manifest import Manifest
from deepzig.errors import DeepZigError
from deepzig.runtime.answer import Answer
from deepzig.runtime.backend import Backend
from deepzig.runtime.guide import U32, Guide, apply
from deepzig.runtime.pages import PagePool
from deepzig.runtime.sampling import SamplingOptions, logprob_of
from deepzig.runtime.tensors import Tensor
from deepzig.sampling import NO_TOKEN

from . import saved
from .batch import Rows, draw
from .drafts import DRAFT, draft
from .generation import Generation
from .lookup import PromptLookup
from .prefix import PrefixTree
from .reading import Reading
from .scheduler import Scheduler, Work
from .sequence import Request, Sequence
from .settings import EngineBusyError, Settings, Stats

PAUSE = 0.05
"""Seconds between looks for pages that are held outside of the engine."""

STEPS = 16
"""Steps without a change of threads, which others who call the model wait for."""

IDLE = 1.0
"""Seconds without work after which the thread ends, so that a model that is forgotten can be freed."""


NOTHING = SamplingOptions(max_tokens=1)
"""Options of requests that want no answer."""


Admit = Callable[[int, int, int], None]
"""Told the tokens of a prompt, the most tokens of an answer, and the number of answers; raises to refuse them."""


Masks = dict[Sequence, Future[list[U32 | None]]]
"""What may be drawn by those who have a guide: for the next token, and after each guess."""


class Engine:
    """Serves requests on a loaded model; safe to use from several threads.

    Args:
        manifest: of the artifact.
        backend: runs its entry points.
        pool: the pages of its cache.
        decode: token ids -> text.
        path: of the artifact, for errors.
        settings: how the model is shared.
    """

    def __init__(
        self, manifest: Manifest, backend: Backend, pool: PagePool, decode: Callable[[List[int]], str], path: Path,
        settings: Settings | None = None,
    ) -> None:  # fmt: skip
        settings = settings or Settings()
        bounds = manifest.bounds
        self._manifest, self._backend, self._pool, self._decode, self._path = manifest, backend, pool, decode, path
        self._max_waiting = settings.max_waiting
        self.tree = PrefixTree(pool) if settings.prefix_reuse else None
        self._scheduler = Scheduler(
            bounds, pool, self.tree, settings.step_tokens or bounds.rows, settings.max_running or bounds.batch
        )
        self._states = [spec.name for spec in manifest.cache]
        self._ends = frozenset(manifest.model["eos_token_ids"])
        self._work = threading.Condition()
        self._new: list[list[Sequence]] = []
        self._cancelled: list[Request] = []
        self._open: dict[Request, list[Sequence]] = {}
        self._arrivals = 0
        self._thread: threading.Thread | None = None
        self._aside = ThreadPoolExecutor(1, "deepzig-guides")
        self._closed = False
        self._counts = dict.fromkeys(("prompt", "cached", "generated", "guessed", "accepted", "steps"), 0)

    def submit(
        self, prompt: list[int], options: SamplingOptions, *, priority: int = 0, salt: Hashable = None,
        guides: List[Guide] = (), admit: Admit | None = None,
    ) -> Generation:  # fmt: skip
        """Ask for answers; returns at once.

        Args:
            prompt: token ids, checked, fewer than the context has positions.
            options: how to answer.
            priority: requests with a lower number go first, and may take the pages of others.
            salt: prompts with different ones share nothing.
            guides: one for each answer, if it has to keep to a structure.
            admit: is told what the request may take, before it enters.

        Raises:
            DeepZigError: the model is closed.
            EngineBusyError: too many wait.
        """
        room = min(self._manifest.bounds.positions, self._pool.tokens) - len(prompt)
        limit = min(options.max_tokens or room, room)
        if admit:
            admit(len(prompt), limit, options.n)
        seed = secrets.randbits(63) if options.seed is None else options.seed
        request = Request(prompt, options, priority, salt)
        drafts = options.speculate > 0 and DRAFT in self._manifest.entry_points
        sequences: list[Sequence] = []
        for index in range(options.n):
            answer = Answer(options, self._ends, limit, self._decode)
            one = Sequence(request, index, answer, options.key(seed, index), list(prompt), drafts=drafts)
            one.leader = sequences[0] if sequences else None
            one.looked_up = PromptLookup() if options.speculate and not drafts else None
            one.guide = guides[index] if guides else None
            sequences.append(one)
        return self._enter(request, sequences)

    def read(
        self, prompt: list[int], reading: Reading, *, priority: int = 0, salt: Hashable = None,
        admit: Admit | None = None,
    ) -> Generation:  # fmt: skip
        """Have a text read, without an answer; wait for the end with `Generation.wait`.

        Args:
            prompt: token ids, checked, no more than the context has positions.
            reading: takes what the model makes of it, on the engine's thread.
            priority: as in `submit`.
            salt: as in `submit`.
            admit: as in `submit`.

        Raises:
            DeepZigError: the model is closed.
            EngineBusyError: too many wait.
        """
        if admit:
            admit(len(prompt), 0, 0)
        request = Request(prompt, NOTHING, priority, salt, reading)
        answer = Answer(NOTHING, self._ends, 0, self._decode)
        return self._enter(request, [Sequence(request, 0, answer, NOTHING.key(0, 0), list(prompt))])

    def _enter(self, request: Request, sequences: list[Sequence]) -> Generation:
        generation = Generation(request, self._cancel)
        with self._work:
            if self._closed:
                raise DeepZigError("the model is closed", str(self._path), "load it again")
            if len(self._scheduler.waiting) + len(self._new) >= self._max_waiting:
                waiting = f"{self._max_waiting} requests wait already"
                raise EngineBusyError(waiting, "engine", "try again later, or load the model with a larger max_waiting")
            self._arrivals += 1
            request.arrival = self._arrivals
            self._new.append(sequences)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="deepzig-engine", daemon=True)
                self._thread.start()
            self._work.notify()
        return generation

    def save_prefixes(self, path: Path, artifact: bytes, salt: Hashable = None) -> int:
        """Write the kept pages of prompts to a file; returns how many tokens they hold.

        Args:
            path: the file.
            artifact: 32 bytes that tell whose cache it is.
            salt: of the prompts.

        Raises:
            DeepZigError: the file can't be written, or the engine keeps nothing.
        """
        nodes = self._kept(path).kept(salt)
        try:
            saved.save(path, nodes, self._backend, self._states, artifact)
        finally:
            self._pool.give_back([node.page for node in nodes])
        return len(nodes) * self._pool.page_size

    def load_prefixes(self, path: Path, artifact: bytes, salt: Hashable = None) -> int:
        """Take up what `save_prefixes` wrote; returns how many tokens it holds.

        Raises:
            DeepZigError: the file is damaged or of another artifact, or the cache has no room for it.
        """
        tree = self._kept(path)
        return saved.load(path, tree, self._pool, self._backend, self._states, artifact, salt)

    def _kept(self, path: Path) -> PrefixTree:
        if self.tree is None:
            raise DeepZigError("no prefixes are kept", str(path), "load the model with prefix_reuse")
        return self.tree

    def stats(self) -> Stats:
        """Where it stands."""
        counts, scheduler = self._counts, self._scheduler
        return Stats(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting) + len(self._new),
            pages=self._pool.count,
            pages_free=self._pool.free,
            pages_kept=len(self.tree) if self.tree else 0,
            prompt_tokens=counts["prompt"],
            cached_tokens=counts["cached"],
            generated_tokens=counts["generated"],
            guessed_tokens=counts["guessed"],
            accepted_tokens=counts["accepted"],
            preemptions=scheduler.preemptions,
            steps=counts["steps"],
        )

    def close(self) -> None:
        """End all requests with an error, and stop."""
        with self._work:
            self._closed = True
            self._work.notify()
        if self._thread and self._thread is not threading.current_thread():
            self._thread.join()
        self._aside.shutdown()

    def _cancel(self, request: Request) -> None:
        with self._work:
            request.cancelled = True
            self._cancelled.append(request)
            self._work.notify()

    def _run(self) -> None:
        while self._take_in():
            try:
                if self._backend.run(self._steps):
                    continue
            except BaseException as error:  # nobody shall wait for an answer that does not come
                self._end_all(error)
            with self._work:  # all pages are held by someone else
                if not self._new:
                    self._work.wait(PAUSE)
        if self._closed:
            self._end_all(DeepZigError("the model is closed", str(self._path), "load it again"))

    def _take_in(self) -> bool:
        """Wait for work, and take in who came and who left; false when the thread shall end."""
        with self._work:
            while not (self._closed or self._new or self._cancelled or self._open):
                if not self._work.wait(IDLE):
                    self._thread = None
                    return False
            new, self._new = self._new, []
            gone, self._cancelled = self._cancelled, []
        for sequences in new:
            self._open[sequences[0].request] = list(sequences)
            for sequence in sequences:
                self._scheduler.add(sequence)
        for request in gone:
            self._end(request, None)
        return not self._closed

    def _steps(self) -> bool:
        """Steps until someone comes or leaves, or for a while; false if nobody can be served."""
        for _ in range(STEPS):
            if not self._step():
                return False
            if self._new or self._cancelled or self._closed or not self._open:
                break
        return True

    def _step(self) -> bool:
        """Serve everyone once; false if nobody can be."""
        plan = self._scheduler.plan()
        if not plan:
            return False
        self._counts["steps"] += 1
        if plan.copies:
            self._backend.copy_pages(plan.copies)
        for form, works in plan.calls.items():
            served = [work for work in works if work.sequence.request in self._open]
            if not served:
                continue
            try:
                self._call(form, served)
            except BaseException as error:
                for request in {work.sequence.request for work in served}:
                    self._end(request, error)
        return True

    def _call(self, form: str, works: list[Work]) -> None:
        rows = Rows(works)
        masks = self._masks(works)
        logits, *rest = self._backend.call(form, rows.inputs)
        hidden, drawn_from = rest[0] if rest else None, logits
        if len(rows.drawn_from) < len(logits):  # others are only looked at
            logits = np.asarray(logits)
            drawn_from = logits[rows.drawn_from]
        drawn = self._draw(drawn_from, rows, masks) if rows.draws else []
        told = np.asarray(drawn_from) if any(s.request.options.logprobs for s, _ in rows.draws) else None
        at = 0
        for work, span, shown in zip(works, rows.spans, rows.shown, strict=True):
            sequence = work.sequence
            if reading := sequence.request.reading:
                reading.take(work.begin, np.asarray(logits[: shown.stop])[shown.start :], hidden, span)
            count = len(work.guesses) + 1 if work.draws else 0
            others = range(at + count, at + count + len(work.followers))
            sequence.read = work.end
            if work.begin < sequence.prompt:
                self._scheduler.keep(sequence)
            if work.followers:
                self._scheduler.fork(sequence, work.followers)
            self._accept(sequence, work.guesses, range(at, at + count), drawn, told)
            for follower, row in zip(work.followers, others, strict=True):
                self._accept(follower, [], range(row, row + 1), drawn, told)
            at = others.stop
        self._guess(works, rows, hidden)
        for work in works:
            for sequence in (work.sequence, *work.followers):
                if sequence.done:
                    self._finish(sequence)

    def _masks(self, works: list[Work]) -> Masks:
        """What the guides let pass: work that is done elsewhere, while the model runs."""
        guided = [
            (sequence, work.guesses if sequence is work.sequence else [])
            for work in works if work.draws for sequence in (work.sequence, *work.followers) if sequence.guide
        ]  # fmt: skip
        return {s: self._aside.submit(s.guide.masks, guesses) for s, guesses in guided if s.guide}

    def _draw(self, logits: Tensor, rows: Rows, masks: Masks) -> list[int]:
        """A token for each row that is drawn from."""
        edits = [
            i for i, (s, guessed) in enumerate(rows.draws)
            if s.request.options.edits or s in masks or s.answer.too_short(guessed)
        ]  # fmt: skip
        if edits:
            logits = np.array(logits)
            for i in edits:
                sequence, guessed = rows.draws[i]
                answer = [*sequence.answer.tokens, *sequence.guesses[:guessed]]
                sequence.request.options.edit(logits[i], sequence.request.prompt, answer)
                if sequence.answer.too_short(guessed) and not sequence.guide:
                    logits[i, [token for token in sequence.answer.ends if 0 <= token < logits.shape[1]]] = -np.inf
                allowed = masks[sequence].result() if sequence in masks else []
                if guessed < len(allowed):  # behind a guess that is not allowed nothing is read
                    apply(allowed[guessed], logits[i])
        return draw(
            self._backend, logits,
            [sequence.request.options for sequence, _ in rows.draws],
            [sequence.key for sequence, _ in rows.draws],
            [len(sequence.tokens) + guessed for sequence, guessed in rows.draws],
        )  # fmt: skip

    def _accept(
        self, sequence: Sequence, guesses: list[int], rows: range, drawn: list[int], told: np.ndarray | None
    ) -> None:
        """Take drawn tokens into an answer, up to the first that differs from its guess."""
        request, options = sequence.request, sequence.request.options
        sequence.guesses = []
        if rows and not sequence.answer.tokens and not sequence.index:
            request.cached = sequence.found
            self._counts["prompt"] += sequence.prompt
            self._counts["cached"] += sequence.found
        for guess, row in zip([*guesses, None], rows, strict=False):
            token = drawn[row]
            if token == NO_TOKEN:
                what = "the model computed logits that are no numbers"
                self._end(request, DeepZigError(what, str(self._path), "compile with another --dtype"))
                return
            logprob = None
            if told is not None and options.logprobs:
                logprob = logprob_of(told[row], token, options.top_logprobs)
            complete = False
            if sequence.guide and token not in sequence.answer.ends:
                sequence.guide.push(token)
                complete = sequence.guide.ended
            piece = sequence.answer.push(token, logprob, complete)
            self._counts["generated"] += 1
            request.deliver(sequence.index, piece)
            if sequence.done:
                return
            sequence.tokens.append(token)
            if guess != token:
                return
            sequence.read += 1
            request.accepted += 1
            self._counts["accepted"] += 1

    def _guess(self, works: list[Work], rows: Rows, hidden: Tensor | None) -> None:
        """Guess what follows, for the next call."""
        bounds = self._manifest.bounds
        served = [s for work in works if work.draws for s in (work.sequence, *work.followers)]
        for sequence in served:
            if sequence.looked_up:
                sequence.guesses = sequence.looked_up.guess(sequence.tokens, sequence.wants(bounds))
        if hidden is not None and any(work.sequence.drafts for work in works):
            drafting = [work.sequence for work in works if work.draws and work.sequence.drafts]
            wanted = {s: self._scheduler.extend(s, s.wants(bounds)) for s in drafting}
            draft(self._backend, works, rows, hidden, wanted)
        for sequence in served:
            sequence.request.guessed += len(sequence.guesses)
            self._counts["guessed"] += len(sequence.guesses)

    def _finish(self, sequence: Sequence) -> None:
        """An answer has ended: its pages are free before its request learns of the end."""
        open_ones = self._open.get(sequence.request)
        if open_ones is None or sequence not in open_ones:
            return
        open_ones.remove(sequence)
        self._scheduler.remove(sequence)
        if not open_ones:
            self._end(sequence.request, None)

    def _end_all(self, error: BaseException) -> None:
        for request in list(self._open):
            self._end(request, error)

    def _end(self, request: Request, error: BaseException | None) -> None:
        for sequence in self._open.pop(request, []):
            self._scheduler.remove(sequence)
        request.deliver(0, error)
