"""The kernels of an artifact at work: the bytes that each reads in a decode step, over its time, against the bandwidth.

Weights of a whole model don't fit in caches, so every kernel reads memory as it does in use. Watching makes threads
fall asleep between kernels that would not have slept: short kernels look slower than they are.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limits import median_ratio
from protocol import Case

from deepzig.artifacts.manifest import Build
from deepzig.runtime import load
from deepzig.runtime.bench.cases import Decode, Plan
from deepzig.runtime.bench.runner import Runner
from deepzig.runtime.bench.trace import Recorder
from deepzig.runtime.inspect.text import table
from deepzig.runtime.machine import Stream
from deepzig.runtime.model import Model
from deepzig.runtime.tensors import Tensor
from deepzig.runtime.vm import VirtualMachine

EXPERT_OPS = ("moe", "expert_linear")
"""Ops whose kernels read the chosen experts of a stack."""
WRITERS = ("latent_write",)
"""Ops whose kernels write a row of the cache, and read none."""


@dataclass(frozen=True)
class KernelRow:
    """A kernel, or several, in a decode step of one sequence.

    Attributes:
        label: model, format and what was done.
        kernel: its symbol; or `all of` an op that takes several, or of the step.
        calls: in a step.
        milliseconds: of a step, of all calls; median over turns.
        bytes: that they read, of weights and cache.
        share: of the bandwidth of the same turn; median over turns.
    """

    label: str
    kernel: str
    calls: int
    milliseconds: float
    bytes: int
    share: float


class Reads:
    """An observer that counts the bytes which the kernels of a `decode` call for one row read.

    Of the cache those before the row, or the row where it is written; of a stack of experts the chosen and the shared;
    of embeddings one row; of all other tensors all of it.
    """

    def __init__(self, build: Build, config: Mapping[str, Any], pages: int, page_size: int, depth: int) -> None:
        self.bytes: Counter[str] = Counter()
        self._ops = {call.kernel: call.op for call in build.calls["decode"]}
        self._cache, self._depth = (pages, page_size), depth
        shared = config["n_shared_experts"]
        self._experts = config["n_routed_experts"] + shared
        self._chosen = config["num_experts_per_tok"] + shared

    def __call__(self, kernel: str, tensors: list[Tensor], before: bool) -> None:
        """Told of a kernel call, see `VirtualMachine.watch`."""
        if before and kernel in self._ops:
            self.bytes[kernel] += sum(self._read(self._ops[kernel], x) for x in tensors)

    def _read(self, op: str, x: Tensor) -> int:
        if x.ndim > 2 and x.shape[:2] == self._cache:
            return (1 if op in WRITERS else self._depth) * x.nbytes // (x.shape[0] * x.shape[1])
        if op in EXPERT_OPS and x.ndim > 2 and x.shape[0] == self._experts:
            return x.nbytes * self._chosen // self._experts
        if op == "embed" and x.ndim > 1:
            return x.nbytes // x.shape[0]
        return x.nbytes


def decode_kernels(
    label: str, artifact: Path, config: Mapping[str, Any], case: Case, threads: int, rounds: int
) -> list[KernelRow]:
    """The kernels of a decode of one sequence, those that take longest first."""
    page = 64 + case.depth + case.steps
    with load(artifact, threads=threads, cache_tokens=2 * page) as model, Stream(threads) as stream:
        decode = Decode(1, case.depth)
        runner = Runner(model, Plan((decode,), case.steps, (case.depth,), (case.depth + case.steps,), ()))
        for _ in runner.fill():
            pass
        build = _machine(model).artifact.build
        reads, calls = _reads(model, runner, decode, config), Counter(call.kernel for call in build.calls["decode"])
        turns = [(_times(model, runner, decode), stream.bandwidth()) for _ in range(rounds + 1)][1:]
    made = []
    for name, kernels in groups(build).items():
        size = sum(reads[kernel] for kernel in kernels)
        seconds = [sum(times[kernel] for kernel in kernels) / case.steps for times, _ in turns]
        share = median_ratio([size / s for s in seconds], [speed for _, speed in turns])
        count = sum(calls[kernel] for kernel in kernels)
        made.append(KernelRow(label, name, count, 1e3 * statistics.median(seconds), size, share))
    return sorted(made, key=lambda row: -row.milliseconds)


def groups(build: Build) -> dict[str, set[str]]:
    """Kernels of a decode step by themselves, those of an op that takes several, and all of them."""
    calls = build.calls["decode"]
    by_op: dict[str, set[str]] = {}
    for call in calls:
        by_op.setdefault(call.op, set()).add(call.kernel)
    each = {call.kernel: {call.kernel} for call in calls}
    ops = {f"all of {op}": kernels for op, kernels in by_op.items() if len(kernels) > 1}
    return {**each, **ops, "all of the step": set(each)}


def _machine(model: Model) -> VirtualMachine:
    assert isinstance(model.backend, VirtualMachine)
    return model.backend


def _reads(model: Model, runner: Runner, case: Decode, config: Mapping[str, Any]) -> Counter[str]:
    """Bytes that each kernel reads in a step."""
    vm = _machine(model)
    reads = Reads(vm.artifact.build, config, model.pool.count, model.manifest.bounds.page_size, case.depth)
    with vm.watch(reads):
        runner.run(case, 1)
    return reads.bytes


def _times(model: Model, runner: Runner, case: Decode) -> Counter[str]:
    """Seconds of each kernel in the steps of a case."""
    vm = _machine(model)
    recorder = Recorder(vm.artifact.build.calls, str(model.path))
    runner.around = recorder.around
    with vm.watch(recorder, tensors=False):
        runner.run(case)
    times: Counter[str] = Counter()
    for span in recorder.spans:
        if span.call is not None:
            times[span.call.kernel] += span.microseconds / 1e6  # type: ignore[assignment]
    return times


def kernel_report(rows: Sequence[KernelRow]) -> str:
    """A table for each label."""
    parts = []
    for label in dict.fromkeys(row.label for row in rows):
        cells: list[Sequence[str]] = [(label, "calls", "ms", "MB", "of bandwidth")]
        cells += [
            (f"  {r.kernel}", str(r.calls), f"{r.milliseconds:.3f}", f"{r.bytes / 1e6:.2f}", f"{100 * r.share:.0f} %")
            for r in rows
            if r.label == label
        ]
        parts.append("\n".join(table(cells, range(1, 5))))
    return "\n\n".join(parts)
