"""What compilers make of the kernels for many rows, at the shapes of true models."""

from __future__ import annotations

from typing import Any

import pytest
import tvm

from deepzig.targets.gpu.device import CUDA, METAL, GpuTarget
from deepzig.targets.gpu.nvcc import fatbin
from deepzig.targets.gpu.operands import Encoding, prepare
from deepzig.targets.gpu.product import Product
from deepzig.targets.gpu.tiled import tiled, tiled_heads
from deepzig.targets.gpu.tiled_moe import Experts, tiled_experts
from deepzig.targets.gpu.toolkit import find_tool

from .metal_language import errors, sources
from .sass import disassembled, matrix_instructions
from .weights import DTYPES

UNITS = {"f32": set[str](), "q8": {"IMMA"}, "q4": {"IMMA"}}
"""Type of a weight -> instructions of matrix units for it, where these are not those of floats."""


def kernels(gpu: Any, wdtype: str) -> list[Any]:
    """Products of DeepSeek-V2-Lite, and one of V3."""
    experts = Experts(2048, 1408, wdtype, 66, 8, gathered=True, gated=True)
    return [
        tiled(gpu, Product(2048, 3072, wdtype)),
        tiled(gpu, Product(7168, 2112, wdtype, norm_eps=1e-6, residual=True)),
        tiled(gpu, Product(2048, 576, wdtype, bias=True)),
        tiled(gpu, Product(2048, 10944, wdtype, gated=True)),
        tiled_experts(gpu, experts),
        tiled_experts(gpu, Experts(1408, 2048, wdtype, 66, 8, part=(16, 48))),
        tiled_heads(gpu, 16, 512, 128, wdtype, y_shape=(16, 128), y_offset=0, y_stride=128),
    ]


def compiled(gpu: Any, kernels: list[Any]) -> Any:
    target = GpuTarget(gpu, frozenset(), "x86_64-linux", gpu.kind)
    return target.compile(tvm.IRModule({str(k.attrs["global_symbol"]): k for k in kernels}))


def check_cuda(wdtype: str, archs: set[str]) -> None:
    """Tensor cores multiply, and all that a thread holds is in registers."""
    if find_tool("nvcc") is None:
        pytest.skip("nvcc is not installed")
    code = fatbin(compiled(CUDA, kernels(CUDA, wdtype)).mod.imports[0].inspect_source(""), archs)
    assert len(code.usage) == len(kernels(CUDA, wdtype)) * len(archs)
    assert not [u for u in code.usage if u.spills or u.stack]
    for arch in archs:
        for text in disassembled(code.data, arch).values():
            assert matrix_instructions(text) == UNITS.get(wdtype, {"HMMA"})


def test_cuda() -> None:
    check_cuda("q4", {"sm_80"})


@pytest.mark.slow
@pytest.mark.parametrize("wdtype", DTYPES)
def test_cuda_of_all_types(wdtype: str) -> None:
    check_cuda(wdtype, {"sm_80", "sm_89", "sm_90a"})


def test_rows_are_prepared_in_registers() -> None:
    if find_tool("nvcc") is None:
        pytest.skip("nvcc is not installed")
    encodings = [Encoding.of(CUDA, 2048, wdtype) for wdtype in DTYPES]
    made = [prepare(e, x_shape=(2053,), begin=3, norm_eps=1e-6) for e in encodings]
    made += [prepare(e, x_shape=(8, 2048), parts=8, stride=2048) for e in encodings]
    code = fatbin(compiled(CUDA, made).mod.imports[0].inspect_source(""), {"sm_80"})
    assert len(code.usage) == len(made) and not [u for u in code.usage if u.spills or u.stack]


@pytest.mark.parametrize("wdtype", DTYPES)
def test_metal(wdtype: str) -> None:
    made = [*kernels(METAL, wdtype), prepare(Encoding.of(METAL, 2048, wdtype), x_shape=(2053,), begin=3, norm_eps=1e-6)]
    texts = sources(compiled(METAL, made))
    assert len(texts) == len(made)
    for text in texts.values():
        assert errors(text) == []
