"""Where the time goes: every kernel call on a timeline, and tables of them.

Watching costs several microseconds at every call of the virtual machine, kernel or not, so speeds are measured without
it. A kernel's own time has little of that, but it may have to wake threads that would not have slept yet.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter_ns
from typing import Any

from deepzig.artifacts.manifest import Build, Call
from deepzig.errors import DeepZigError
from deepzig.runtime.inspect.kernels import OUTSIDE, layer_kinds, ranges
from deepzig.runtime.inspect.text import table

from .report import digits


@dataclass(frozen=True)
class Span:
    """A stretch of time, in nanoseconds of one clock: a case, a call of an entry point, or of a kernel."""

    name: str
    kind: str
    begin: int
    end: int
    call: Call | None = None

    @property
    def microseconds(self) -> float:
        """How long it took."""
        return (self.end - self.begin) / 1000


class Recorder:
    """An observer of kernel calls that keeps the time.

    Args:
        calls: entry point -> its kernel calls, in order.
        where: what to name in errors.
    """

    def __init__(self, calls: Mapping[str, Sequence[Call]], where: str) -> None:
        self.spans: list[Span] = []
        self._calls, self._where = calls, where
        self._waiting: Iterator[Call] = iter(())
        self._begin = 0
        self._fault: str | None = None

    def __call__(self, kernel: str, _: object, before: bool) -> None:
        """Told of a kernel call, see `VirtualMachine.watch`."""
        if before:
            self._begin = perf_counter_ns()
            return
        end = perf_counter_ns()
        call = next(self._waiting, None)
        if call is None or call.kernel != kernel:
            self._fault = self._fault or f"the code calls {kernel} where the manifest has another kernel"
            return
        self.spans.append(Span(call.op, "kernel", self._begin, end, call))

    @contextmanager
    def case(self, name: str) -> Iterator[None]:
        """What happens within belongs to a case."""
        with self._span(name, "case"):
            yield

    @contextmanager
    def around(self, entry: str) -> Iterator[None]:
        """What happens within is one call of an entry point.

        Raises:
            DeepZigError: it did not make the kernel calls that the manifest lists.
        """
        self._waiting, self._fault = iter(self._calls.get(entry, ())), None
        with self._span(entry, "entry"):
            yield
        missing = next(self._waiting, None)
        if missing is not None and self._fault is None:
            self._fault = f"the code does not call {missing.kernel}, which the manifest lists"
        if self._fault is not None:
            raise DeepZigError(self._fault, f"{self._where}, {entry}", "compile the model again")

    @contextmanager
    def _span(self, name: str, kind: str) -> Iterator[None]:
        begin = perf_counter_ns()
        yield
        self.spans.append(Span(name, kind, begin, perf_counter_ns()))


def chrome_trace(spans: Sequence[Span], process: str) -> str:
    """A trace that chrome://tracing and https://ui.perfetto.dev show (Trace Event Format, complete events)."""
    start = min((span.begin for span in spans), default=0)
    events: list[dict[str, Any]] = [
        {"ph": "M", "pid": 1, "tid": 1, "name": "process_name", "args": {"name": process}},
        {"ph": "M", "pid": 1, "tid": 1, "name": "thread_name", "args": {"name": "calls"}},
    ]
    # outer spans before the inner ones that begin with them
    for span in sorted(spans, key=lambda span: (span.begin, -span.end)):
        event = {
            "ph": "X", "pid": 1, "tid": 1, "name": span.name, "cat": span.kind,
            "ts": (span.begin - start) / 1000, "dur": span.microseconds,
        }  # fmt: skip
        if span.call is not None:
            call = span.call
            event["args"] = {"kernel": call.kernel, "op": call.op, "layer": call.layer, "where": call.where}
        events.append(event)
    return json.dumps({"traceEvents": events, "displayTimeUnit": "ms"})


@dataclass(frozen=True)
class Row:
    """Kernel calls of a kind, within one case: their number, their time, and the share of it of all kernels there."""

    name: str
    calls: int
    milliseconds: float
    share: float

    @property
    def microseconds_per_call(self) -> float:
        """The mean."""
        return 1000 * self.milliseconds / self.calls


@dataclass(frozen=True)
class Account:
    """What a case spent its time on.

    Attributes:
        name: of the case.
        milliseconds: of all of it.
        ops: by op, the greatest first.
        layers: by kind of layer, in order, as `deepzig inspect` names them.
    """

    name: str
    milliseconds: float
    ops: tuple[Row, ...]
    layers: tuple[Row, ...]

    @property
    def between(self) -> float:
        """Milliseconds between kernels: for the most part the cost of watching."""
        return self.milliseconds - sum(row.milliseconds for row in self.ops)

    def to_json(self) -> dict[str, Any]:
        """Its entry in the object that `--json` prints."""
        rows = {key: [vars(row) for row in getattr(self, key)] for key in ("ops", "layers")}
        return {"case": self.name, "milliseconds": self.milliseconds, **rows, "between_milliseconds": self.between}


def accounts(spans: Sequence[Span], build: Build) -> list[Account]:
    """An account of every case, in order."""
    kinds: dict[int | None, str] = {
        layer: f"{kind.name}: {ranges(kind.layers)}" for kind in layer_kinds(build) for layer in kind.layers
    }
    made = []
    for case in sorted((s for s in spans if s.kind == "case"), key=lambda s: s.begin):
        inner = [s for s in spans if s.call is not None and case.begin <= s.begin < case.end]
        ops = sorted(_rows(inner, lambda call: call.op), key=lambda row: -row.milliseconds)
        layers = {row.name: row for row in _rows(inner, lambda call: kinds.get(call.layer, OUTSIDE))}
        ordered = [layers[name] for name in dict.fromkeys([*kinds.values(), OUTSIDE]) if name in layers]
        made.append(Account(case.name, case.microseconds / 1000, tuple(ops), tuple(ordered)))
    return made


def _rows(spans: Sequence[Span], key: Callable[[Call], str]) -> list[Row]:
    times: dict[str, list[float]] = {}
    for span in spans:
        assert span.call is not None
        times.setdefault(key(span.call), []).append(span.microseconds / 1000)
    whole = sum(map(sum, times.values()))
    return [Row(name, len(each), sum(each), sum(each) / whole) for name, each in times.items()]


def kernel_table(account: Account) -> str:
    """An account for people: a line for each op, then one for each kind of layer."""
    heads = (f"{account.name}, {digits(account.milliseconds)} ms", "calls", "ms", "share", "us/call")
    rows: list[Sequence[str]] = [heads]
    for group in (account.ops, account.layers):
        rows += [
            (
                f"  {row.name}", str(row.calls), f"{row.milliseconds:.2f}", f"{100 * row.share:.1f} %",
                digits(row.microseconds_per_call),
            )
            for row in group
        ]  # fmt: skip
        rows.append(("",) * 5)
    rows[-1] = ("  between kernels", "", f"{account.between:.2f}", "", "")
    return "\n".join(table(rows, range(1, len(heads))))
