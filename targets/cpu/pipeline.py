"""How TVM lowers the CPU kernels.

Its own pipeline has 47 passes, most of them for GPUs and for schedules. What these kernels need are ten: LLVM does the
rest, and the machine code is as fast in half of the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tvm
from tvm import s_tir, tirx
from tvm.s_tir.pipeline import finalize_device_passes, finalize_host_passes
from tvm.tirx.compilation_pipeline import PIPELINE_MAP

PIPELINE = "deepzig_cpu"
PASSES = (
    # blocks: only plain kernels, written as tensor expressions, have any
    s_tir.transform.LowerInitBlock,
    s_tir.transform.PlanAndUpdateBufferAllocationLocation,
    s_tir.transform.ConvertBlocksToOpaque,
    s_tir.transform.LowerOpaqueBlock,
    # buffers to pointers
    tirx.transform.FlattenBuffer,
    tirx.transform.StorageRewrite,
    tirx.transform.StmtSimplify,
    s_tir.transform.RewriteUnsafeSelect,
    # the calling convention
    tirx.transform.AnnotateEntryFunc,
    tirx.transform.MakePackedAPI,
)


def _pipeline() -> tuple[Any, Any, Any]:
    passes = tvm.transform.Sequential([make() for make in PASSES])
    return passes, finalize_host_passes, finalize_device_passes


PIPELINE_MAP[PIPELINE] = _pipeline


def compile_module(module: Any, target: Any, first: Sequence[Any] = ()) -> Any:
    """Compile a TVM module for a TVM target; `first` are passes that come before all others.

    Kernels don't check their arguments: that was half of the code. The entry points, which alone call them, do.
    Kernels that copy, of ops that no pass has fused, are called all the same: as views, two values would be one memory,
    and the code would make other calls than the manifest lists.
    """
    views = ["RewriteDataflowReshape"]
    module = tvm.transform.Sequential(first)(module)
    with tvm.transform.PassContext(config={"tirx.disable_assert": True}, disabled_pass=views):
        return tvm.compile(module, target=target, tir_pipeline=PIPELINE)
