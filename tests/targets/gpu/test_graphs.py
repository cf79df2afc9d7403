"""CUDA graphs on the software GPU: launches that TVM's virtual machine records once and repeats."""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from tvm import relax, tirx
from tvm.script import tirx as T

from deepzig.targets.emit import kernel, store, symbols
from deepzig.targets.gpu.device import CUDA, GpuTarget
from deepzig.targets.gpu.emit import launch
from deepzig.targets.gpu.pipeline import PIPELINE

from .conftest import SoftwareGpu

WIDTH = 96
STEPS = 4

PASSES = (
    relax.transform.ToNonDataflow,
    relax.transform.RemovePurityChecking,
    relax.transform.CallTIRRewrite,
    relax.transform.StaticPlanBlockMemory,
    relax.transform.RewriteCUDAGraph,
    relax.transform.LowerAllocTensor,
    relax.transform.KillAfterLastUse,
    relax.transform.LowerRuntimeBuiltin,
    relax.transform.ComputePrimValue,
    relax.transform.VMShapeLower,
    relax.transform.AttachGlobalSymbol,
)


def lowered(module: Any) -> Any:
    return tvm.transform.Sequential([make() for make in PASSES])(module)


def step() -> Any:
    """y = 2 x + 1"""
    with kernel("step") as f:
        (n,) = symbols("n")
        x, y = f.tensor("x", "f32", n, WIDTH), f.tensor("y", "f32", n, WIDTH)
        with launch(WIDTH, n) as t:
            store(y, x[t.block[0], t.thread] * T.float32(2) + T.float32(1), t.block[0], t.thread)
    return f.function


def module() -> Any:
    """`decode`: STEPS steps, whose rows are known in number when they are recorded."""
    builder = relax.BlockBuilder()
    n = tirx.Var("n", "int64")
    rows = relax.TensorType((n, WIDTH), "float32")
    x = relax.Var("x", rows)
    call = builder.add_func(step(), "step")
    symbols_of_graphs = "relax.rewrite_cuda_graph.capture_symbolic_vars"
    with builder.function("decode", [x], attrs={"tir_var_upper_bound": {"n": 8}, symbols_of_graphs: ["n"]}):
        with builder.dataflow():
            y = x
            for _ in range(STEPS):
                y = builder.emit(relax.call_tir(call, relax.Tuple([y]), rows))
            result = builder.emit_output(y)
        builder.emit_func_output(result)
    return builder.finalize()


def test_launches_are_recorded_and_repeated(gpu: Callable[[str], SoftwareGpu], tmp_path: Path) -> None:
    gpu("cuda")
    target = GpuTarget(CUDA, frozenset(), f"{platform.machine()}-linux", "cuda").tvm_target()
    with tvm.transform.PassContext(config={"relax.backend.use_cuda_graph": True}):
        compiled = tvm.compile(module(), target=target, relax_pipeline=lowered, tir_pipeline=PIPELINE)
    assert "vm.builtin.cuda_graph.run_or_capture" in compiled.as_text()
    compiled.export_library(str(tmp_path / "decode.so"))
    machine = relax.VirtualMachine(tvm.runtime.load_module(str(tmp_path / "decode.so")), tvm.cuda())
    rng = np.random.default_rng(9)
    for rows in (3, 5, 3, 3, 5):
        x = rng.standard_normal((rows, WIDTH), np.float32)
        y = machine["decode"](tvm.runtime.tensor(x, tvm.cuda())).numpy()
        np.testing.assert_allclose(y, 2**STEPS * x + 2**STEPS - 1, rtol=1e-5, atol=1e-5)
