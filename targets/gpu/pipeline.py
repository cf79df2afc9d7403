"""How TVM lowers the GPU kernels: barriers and memory are the kernels' own, so few of its passes are needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tvm
from tvm import s_tir, tirx
from tvm.s_tir.pipeline import finalize_device_passes, finalize_host_passes
from tvm.tirx.compilation_pipeline import PIPELINE_MAP

from .preludes import device_functions
from .wgsl import exact_numbers

PIPELINE = "deepzig_gpu"
RELAX_PIPELINE = "default_build"
"""TVM's own for all targets: those for GPUs schedule kernels, and ours are written."""


def narrow_indices() -> Any:
    """The pass that gives kernels indices of 32 bits; functions of the host, which compute shapes, keep 64."""
    narrow = tirx.transform.ForceNarrowIndexToInt32()

    def apply(function: Any, _module: Any, _context: Any) -> Any:
        if function.attrs["target"].kind.name == "llvm":
            return function
        return narrow(tvm.IRModule({"kernel": function}))["kernel"]

    return tirx.transform.prim_func_pass(apply, opt_level=0, name="narrow_indices")


PASSES = (
    # blocks: only plain kernels, written as tensor expressions, have any
    s_tir.transform.LowerInitBlock,
    s_tir.transform.PlanAndUpdateBufferAllocationLocation,
    s_tir.transform.ConvertBlocksToOpaque,
    s_tir.transform.UnifyThreadBinding,
    s_tir.transform.LowerOpaqueBlock,
    # buffers to pointers; GPUs divide 64-bit indices slowly, and no buffer is so large
    tirx.transform.FlattenBuffer,
    narrow_indices,
    tirx.transform.VectorizeLoop,
    tirx.transform.StorageRewrite,
    tirx.transform.UnrollLoop,
    tirx.transform.StmtSimplify,
    tirx.transform.RemoveNoOp,
    s_tir.transform.RewriteUnsafeSelect,
    exact_numbers,
    tirx.transform.VerifyMemory,
    # the calling convention
    tirx.transform.AnnotateEntryFunc,
    tirx.transform.SplitHostDevice,
    tirx.transform.MakePackedAPI,
)


def _pipeline() -> tuple[Any, Any, Any]:
    passes = tvm.transform.Sequential([make() for make in PASSES])
    return passes, finalize_host_passes, finalize_device_passes


PIPELINE_MAP[PIPELINE] = _pipeline


def compile_module(module: Any, target: Any, instruments: Sequence[Any] = ()) -> Any:
    """Compile a TVM module for a TVM target.

    Kernels don't check their arguments: the entry points, which alone call them, do. Kernels that copy are called all
    the same: as views, two values would be one memory, and the code would make other calls than the manifest lists.
    The device's code is source text. `instruments` watch TVM's passes.
    """
    views = ["RewriteDataflowReshape"]
    config = {"tirx.disable_assert": True, "relax.backend.use_cuda_graph": target.kind.name == "cuda"}
    settings = tvm.transform.PassContext(config=config, disabled_pass=views, instruments=list(instruments))
    with device_functions(), settings:
        return tvm.compile(module, target=target, relax_pipeline=RELAX_PIPELINE, tir_pipeline=PIPELINE)
