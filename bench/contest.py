"""Contenders, each in a process of its own, that take turns: only one of them runs, the others are stopped.

A contender's threads may spin while they wait, and some are fastest when they do. So a process is stopped by a signal
(SIGSTOP) as long as others are measured.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from protocol import Case

LONGEST_START = 1800.0
"""Seconds that a contender may take to load; vLLM compiles for minutes."""

GRACE = 4.0
"""Times the limit of a case after which a process counts as hung; the first run may try several settings."""

Say = Callable[[str], None]


class ContenderError(Exception):
    """A contender's process can't go on; the text says why in a line."""


class Contender:
    """A process that is asked for cases, see `protocol`.

    Args:
        name: for the report.
        command: what to run.
        log: a file for what it prints.
        environment: variables that it has beside ours.

    Raises:
        ContenderError: it did not start.
    """

    def __init__(
        self, name: str, command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self._log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log.open("w"), text=True,
                env={**os.environ, **(environment or {})}, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise ContenderError(f"{command[0]}: {error.strerror}") from None
        try:
            self._answer(LONGEST_START)
        except BaseException:
            self.close()
            raise
        self._signal(signal.SIGSTOP)

    def run(self, case: Case, limit: float) -> float:
        """The seconds of a case.

        Raises:
            ContenderError: the process ended, or has not answered within `limit` seconds; it is closed then.
        """
        self._signal(signal.SIGCONT)
        try:
            assert self._process.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # its answer says more
                self._process.stdin.write(json.dumps(case._asdict()) + "\n")
                self._process.stdin.flush()
            seconds: float = self._answer(limit)["seconds"]
        except ContenderError:
            self.close()
            raise
        self._signal(signal.SIGSTOP)
        return seconds

    def _answer(self, limit: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(limit):
                raise ContenderError(f"no answer after {limit:.0f} s, see {self._log}")
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait()
            raise ContenderError(f"the process ended with {status}, see {self._log}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise ContenderError(f"{answer['error'].splitlines()[0]}, see {self._log}")
        return answer

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def close(self) -> None:
        """End the process and those it started."""
        self._signal(signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


@dataclass
class Samples:
    """What turns gave.

    Attributes:
        seconds: of each contender and case, a figure for each turn.
        limits: of each case what the machine can do, what the probe told in each turn.
        product: floating-point operations a second of an f32 matrix product, of each turn.
    """

    seconds: dict[tuple[str, Case], list[float]] = field(default_factory=dict)
    limits: dict[Case, list[Any]] = field(default_factory=dict)
    product: list[float] = field(default_factory=list)


def take_turns(
    contenders: Sequence[Contender], cases: Sequence[Case], rounds: int, limit: float,
    probe: Callable[[], Any], product: Callable[[], float], say: Say,
) -> Samples:  # fmt: skip
    """Run all cases with all contenders, `rounds` times after a first turn that warms up.

    A contender that would need more than `limit` seconds to read the tokens of a case, by how fast it read fewer, is
    spared it; one that fails drops out, and what it did counts.

    Args:
        contenders: stopped ones.
        cases: what to run.
        rounds: turns that count.
        limit: seconds, see above.
        probe: measures what the machine can do, before each case.
        product: measures an f32 matrix product, once a turn.
        say: told in a line what is left out.
    """
    samples, running = Samples(), list(contenders)
    left_out: set[tuple[str, Case]] = set()
    pace: dict[str, float] = {}  # seconds a token of a prompt
    for turn in range(rounds + 1):
        flops = product()
        if turn:
            samples.product.append(flops)
        for case in sorted(cases, key=read_before):
            able = probe()
            if turn:
                samples.limits.setdefault(case, []).append(able)
            for contender in list(running):
                key = contender.name, case
                if key in left_out:
                    continue
                if read_before(case) * pace.get(contender.name, 0.0) > limit:
                    say(f"{contender.name}: {case} would take longer than {limit:.0f} s, left out")
                    left_out.add(key)
                    continue
                try:
                    seconds = contender.run(case, GRACE * limit)
                except ContenderError as error:
                    say(f"{contender.name}, {case}: {error}")
                    running.remove(contender)
                    continue
                if turn:
                    samples.seconds.setdefault(key, []).append(seconds)
                elif case.prompt:
                    pace[contender.name] = seconds / case.prompt
    return samples


def read_before(case: Case) -> int:
    """Tokens that are read for a case, by who keeps none of an earlier one."""
    return case.prompt or case.batch * case.depth


@contextlib.contextmanager
def closing(contenders: Sequence[Contender]) -> Iterator[None]:
    """End the processes afterwards."""
    try:
        yield
    finally:
        for contender in contenders:
            contender.close()
