"""The kernels of an artifact on a GPU: each launched by itself, many times over, with the arguments it has in use."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tvm_ffi
from gpu_limits import seconds

from deepzig.runtime.bench.cases import Case
from deepzig.runtime.bench.runner import Runner
from deepzig.runtime.library import code_path
from deepzig.runtime.tensors import DeviceTensor
from deepzig.runtime.vm import VirtualMachine

SIZES = re.compile(
    r"^(?:few|tiled)(?:_experts|_gate_up|_down|_heads)?(?:_h(?P<heads>\d+))?_[ki](?P<k>\d+)_[nih](?P<n>\d+)"
)
"""The sizes in the name of a product's kernel."""


@dataclass(frozen=True)
class KernelRow:
    """A kernel of an entry point.

    Attributes:
        label: model, format and case.
        kernel: its symbol.
        op: what it computes, or is a part of.
        calls: in a call of the entry point.
        microseconds: of one launch.
        bytes: that it has to read and write: all of its arguments; of experts those that are chosen, of the cache the
            tokens that are there.
        operations: multiplications and additions; 0 where its name does not tell.
        torch: how many times as fast as PyTorch's product of these sizes; None where it was not asked.
    """

    label: str
    kernel: str
    op: str
    calls: int
    microseconds: float
    bytes: int
    operations: int
    torch: float | None = None


@dataclass(frozen=True)
class Traffic:
    """What is known of a case beside the sizes of tensors.

    Attributes:
        pages: of the cache, and tokens of a page.
        tokens: that the case has in the cache, all sequences together.
        experts: that a layer has, routed and shared.
        chosen: of them by a row.
        rows: of the call.
    """

    pages: tuple[int, int]
    tokens: int
    experts: int
    chosen: int
    rows: int

    def bytes(self, op: str, tensor: DeviceTensor) -> int:
        """What a kernel reads or writes of an argument."""
        shape, size = tensor.shape, tensor.nbytes
        if shape[:2] == self.pages:
            return size * self.tokens // math.prod(self.pages)
        if op == "moe" and len(shape) == 3 and shape[0] == self.experts and tensor.dtype != "int32":
            met = self.experts * (1 - (1 - self.chosen / self.experts) ** self.rows)
            return int(size * met / self.experts)
        if op == "embed" and len(shape) == 2 and shape[0] > self.rows:
            return size // shape[0] * self.rows
        return size


def operations(kernel: str, rows: int, slots: int) -> int:
    """Of a product's kernel, by the sizes in its name."""
    found = SIZES.match(kernel)
    if found is None:
        return 0
    many = slots if re.match(r"few_gate_up|few_down|tiled_experts", kernel) else 1
    halves = 2 if "gate" in kernel else 1
    return 2 * rows * many * halves * int(found["k"]) * int(found["n"]) * int(found["heads"] or 1)


def measured(label: str, vm: VirtualMachine, runner: Runner, entry: str, case: Case, about: Traffic) -> list[KernelRow]:
    """The kernels of one call of an entry point, those that take longest in all first."""
    calls = vm.artifact.build.calls[entry]
    op_of, count = {call.kernel: call.op for call in calls}, Counter(call.kernel for call in calls)
    module = tvm_ffi.load_module(str(code_path(vm.artifact)))
    rows: dict[str, KernelRow] = {}

    def look(kernel: str, tensors: Sequence[Any], before: bool) -> None:
        if not before or kernel in rows or kernel not in op_of:
            return
        op, launch = op_of[kernel], module[kernel]
        given = [t.tensor for t in tensors]
        taken = seconds(lambda: launch(*given), lambda: vm.wait())
        size = sum(about.bytes(op, t) for t in tensors)
        work = operations(kernel, about.rows, about.chosen)
        rows[kernel] = KernelRow(label, kernel, op, count[kernel], 1e6 * taken, size, work)

    with vm.watch(look):
        runner.run(case, 1)
    return sorted(rows.values(), key=lambda row: -row.calls * row.microseconds)


def products(rows: Sequence[KernelRow]) -> Iterator[tuple[int, int]]:
    """Inputs and outputs of the dense products among kernels."""
    for row in rows:
        found = SIZES.match(row.kernel)
        if found and not re.search("experts|heads|gate_up|down", row.kernel):
            yield int(found["k"]), int(found["n"])


def cells(rows: Sequence[KernelRow], copy: float, peaks: Mapping[str, float], unit: str) -> Iterator[tuple[str, ...]]:
    """Lines of the table: shares of the copy's bandwidth and of the matrix unit's speed."""
    for row in rows:
        bandwidth, speed = 1e6 * row.bytes / row.microseconds, 1e6 * row.operations / row.microseconds
        yield (
            f"  {row.kernel}", str(row.calls), f"{row.microseconds:.1f}", f"{row.bytes / 1e6:.2f}",
            f"{bandwidth / 1e9:.0f}", f"{100 * bandwidth / copy:.0f} %",
            f"{speed / 1e12:.2f}" if row.operations else "",
            f"{100 * speed / peaks[unit]:.0f} %" if row.operations else "",
            "" if row.torch is None else f"{row.torch:.2f}",
        )  # fmt: skip
