"""One matrix product as a contender: `linear_worker.py deepzig|torch THREADS KIND`, see `protocol`.

A case is a prefill: so many rows times a matrix of SIZE x SIZE. Ours is the kernel that a model's linear becomes,
called as in a model: rows of f32, and KIND is `bf16` or what --quant of deepzig-compile takes. PyTorch multiplies two
tensors of a KIND, `bfloat16` or `float32`; where the CPU has no instructions for the former that takes seconds.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from protocol import Case, serve

SIZE = 2048
SECONDS = 0.3
"""Products are done for so long, and one at least."""


def deepzig(threads: int, kind: str) -> Callable[[Case], float]:
    """A graph of one `linear`, through the passes, the target's lowering and TVM."""
    import tvm
    from tvm import relax

    from deepzig.artifacts.cpu_features import this_machine
    from deepzig.compiler.lower import lower
    from deepzig.compiler.pipeline import run_pipeline
    from deepzig.compiler.plan import plan_graph
    from deepzig.compiler.precision import parse_quant
    from deepzig.ir import Builder, ModuleBuilder
    from deepzig.ir.fp8 import FP8, quantize_fp8
    from deepzig.runtime.tensors import aligned
    from deepzig.targets.registry import DEFAULT, find_targets

    os.environ.update({"TVM_NUM_THREADS": str(threads), "TVM_BIND_THREADS": "0"})  # as the runtime has them
    tvm.get_global_func("runtime.config_threadpool")(1, threads)
    b = Builder()
    m = ModuleBuilder("bf16", parse_quant(None if kind == "bf16" else kind))
    x = b.input("x", "f32", ("n", SIZE))
    y = b.linear(x, m.matrix("model.layers.0.mlp.up_proj.weight", SIZE, SIZE))
    module = run_pipeline(m.module((b.graph("linear", (y,), {"rows": 4096, "rows_per_seq": 4096}),)))
    targets, lowerings = find_targets(DEFAULT, this_machine())
    plan = plan_graph(module.graphs[0], module, targets[0], lowerings)
    cpu: Any = tvm.cpu()
    machine = relax.VirtualMachine(targets[0].compile(lower([plan])), cpu)
    rng = np.random.default_rng(0)
    stored_as: dict[str, Callable[[Any], Any]] = {
        "bf16": lambda values: (values.view(np.uint32) >> 16).astype(np.uint16), FP8: quantize_fp8,
    }  # fmt: skip
    weights = []
    for packed in plan.weights:
        shape = tuple(map(int, packed.type.shape))
        values = rng.standard_normal((SIZE, SIZE), np.float32) / np.float32(SIZE**0.5)
        stored = packed.layout.pack(stored_as.get(kind, np.asarray)(values))
        array = aligned(shape, stored.dtype)
        array[...] = stored.reshape(shape)
        weights.append(tvm.runtime.from_dlpack(array))

    def run(case: Case) -> float:
        rows = aligned((case.prompt, SIZE), np.float32)
        rows[...] = rng.standard_normal(rows.shape, np.float32)
        given = tvm.runtime.from_dlpack(rows)
        return _seconds(lambda: machine["linear"](given, *weights))

    return run


def torch(threads: int, kind: str) -> Callable[[Case], float]:
    """PyTorch's F.linear."""
    import torch as t

    t.set_num_threads(threads)
    dtype = getattr(t, kind)
    weight = t.randn(SIZE, SIZE).to(dtype)

    def run(case: Case) -> float:
        rows = t.randn(case.prompt, SIZE).to(dtype)
        return _seconds(lambda: t.nn.functional.linear(rows, weight))

    return run


def _seconds(work: Callable[[], Any]) -> float:
    """The median time of a product."""
    times: list[float] = []
    while sum(times) < SECONDS:
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def main() -> None:
    """Serve products."""
    name, threads, kind = sys.argv[1:]
    serve(lambda: {"deepzig": deepzig, "torch": torch}[name](int(threads), kind))


if __name__ == "__main__":
    main()
