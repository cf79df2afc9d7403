"""Bounds of loops hang on no name whose memory has changed.

Where TVM makes code of a loop's end, it simplifies it, and puts in place of a name what that was bound to: if this is
an element of an array that was written to since, the loop has another end. Threads get values, so nothing of the kind
happens where they share a loop; on one thread it does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import tvm
from tvm import ir, tirx
from tvm.script import tirx as T
from tvm_ffi import structural_walk

from deepzig.artifacts.cpu_features import this_machine
from deepzig.compiler.options import DEFAULT_BOUNDS
from deepzig.compiler.pipeline import run_pipeline
from deepzig.compiler.plan import plan_graph
from deepzig.compiler.precision import parse_quant
from deepzig.compiler.trace import trace
from deepzig.models.families import parse_config
from deepzig.models.fields import Fields
from deepzig.targets.cpu.emit import variable
from deepzig.targets.cpu.legalize import on_one_thread
from deepzig.targets.emit import kernel, loop, repeat, store, symbols
from deepzig.targets.registry import find_targets

from ..runtime.conftest import CONFIG


@dataclass
class Walk:
    """The statements of a kernel in order.

    Attributes:
        names: what a name was made of: memory that was read.
        stale: names whose memory was written to since.
        wrong: those of them that a loop's bounds hang on.
    """

    names: dict[Any, set[Any]] = field(default_factory=dict)
    stale: set[Any] = field(default_factory=set)
    wrong: set[str] = field(default_factory=set)

    def visit(self, statement: Any) -> None:
        if isinstance(statement, tirx.Bind):
            self.names[statement.var] = self.memory(statement.value)
            self.stale.discard(statement.var)
        elif isinstance(statement, tirx.BufferStore):
            written = statement.buffer
            self.stale |= {name for name, read in self.names.items() if written in read}
        elif isinstance(statement, tirx.For):
            bounds = {v for bound in (statement.min, statement.extent) for v in self.used(bound)}
            self.wrong |= {str(name) for name in bounds & self.stale}
        times = 2 if isinstance(statement, tirx.For | tirx.While) else 1  # what is written below is read above
        parts = [getattr(statement, name, None) for name in ("body", "then_case", "else_case", "block")]
        for part in [*getattr(statement, "seq", ()), *parts] * times:
            if part is not None:
                self.visit(part)

    def used(self, expression: Any) -> set[Any]:
        """Names that an expression has, and those that these were made of."""
        found: list[Any] = []
        structural_walk(expression, (ir.Var, found.append))
        return {name for name in found if name in self.names}

    def memory(self, expression: Any) -> set[Any]:
        found: list[Any] = []
        structural_walk(expression, (ir.TensorLoad, lambda load: found.append(load.source)))
        return set(found).union(*(self.names[name] for name in self.used(expression)))


def wrong_in(function: Any) -> set[str]:
    serial = on_one_thread()(tvm.IRModule({"kernel": function}))["kernel"]
    walk = Walk()
    walk.visit(serial.body)
    return walk.wrong


@pytest.mark.parametrize("copied", [True, False])
def test_the_walk_finds_a_name_of_a_counter(copied: bool) -> None:
    with kernel("counts", int(copied)) as f:
        (n,) = symbols("n")
        y = f.tensor("y", "f32", n)
        done = variable(T.int64(0), "int64")
        with repeat(done[0] < n):
            begin: Any = variable(done[0], "int64")[0] if copied else T.bind(done[0])
            store(done, done[0] + 2, 0)
            with loop(T.min(begin + 2, n), begin) as i:
                store(y, T.float32(1), i)
    assert bool(wrong_in(f.function)) != copied


@pytest.mark.parametrize(
    "options",
    [
        {"dtype": "f32"}, {"quant": "q8"}, pytest.param({"dtype": "bf16"}, marks=pytest.mark.slow),
        pytest.param({"quant": "fp8"}, marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_kernels_of_a_model(options: dict[str, str]) -> None:
    (target,), table = find_targets("wasm", this_machine())
    config = parse_config(Fields(CONFIG, "test"))
    dtype = options.get("dtype", "f32")
    rule = parse_quant(options.get("quant"), target.headwise)
    module = run_pipeline(trace(config, dtype, DEFAULT_BOUNDS, quant=rule))
    plans = [plan_graph(graph, module, target, table) for graph in module.graphs]
    kernels = {launch.kernel_name: launch.kernel for plan in plans for launch in plan.launches}
    assert len(kernels) > 12 and not {name: found for name, f in kernels.items() if (found := wrong_in(f))}
