"""What compilers make of the kernels of latent attention, at the shapes of true models."""

from __future__ import annotations

from typing import Any

import pytest

from deepzig.targets.gpu.attention import Sizes
from deepzig.targets.gpu.device import CUDA, METAL
from deepzig.targets.gpu.latent import latent_write
from deepzig.targets.gpu.mla import mla_attend, mla_flash
from deepzig.targets.gpu.nvcc import fatbin
from deepzig.targets.gpu.toolkit import find_tool

from .metal_language import errors, sources
from .sass import disassembled, matrix_instructions
from .test_tiled_code import compiled

DTYPES = ("f32", "bf16", "f16", "q8")
HEADS = (16, 128)
"""Of DeepSeek-V2-Lite and V3, whose other sizes are the same."""


def attentions(gpu: Any, cdtype: str) -> list[Any]:
    sizes = [Sizes(heads, 128, 64, 512, 64, cdtype, 0.1, True) for heads in HEADS]
    return [kernel(s, gpu=gpu) for s in sizes for kernel in (mla_attend, mla_flash)]


def check_cuda(cdtype: str, archs: set[str]) -> None:
    """Tensor cores multiply, and all that a thread holds is in registers."""
    if find_tool("nvcc") is None:
        pytest.skip("nvcc is not installed")
    made = [*attentions(CUDA, cdtype), latent_write(CUDA, 2112, 1536, 512, 64, 64, cdtype, 1e-6, True)]
    code = fatbin(compiled(CUDA, made).mod.imports[0].inspect_source(""), archs)
    # without tensor cores nvcc gives up a few registers for more blocks, on Hopper
    most = 16 if cdtype == "f32" else 0
    assert not [u for u in code.usage if u.spills > most or u.stack > most]
    for arch in archs:
        texts = disassembled(code.data, arch)
        found = [matrix_instructions(text) for text in texts.values()]
        assert found.count({"HMMA"}) == (0 if cdtype == "f32" else 2 * len(HEADS))
        assert found.count(set()) == len(texts) - found.count({"HMMA"})


def test_cuda() -> None:
    check_cuda("bf16", {"sm_80"})


@pytest.mark.slow
@pytest.mark.parametrize("cdtype", DTYPES)
def test_cuda_of_all_types(cdtype: str) -> None:
    check_cuda(cdtype, {"sm_80", "sm_89", "sm_90a"})


def check_metal(cdtype: str, heads: int) -> None:
    s = Sizes(heads, 128, 64, 512, 64, cdtype, 0.1, True)
    write = latent_write(METAL, 2112, 1536, 512, 64, 64, cdtype, 1e-6, True)
    made = [mla_attend(s, gpu=METAL), mla_flash(s, gpu=METAL), write]
    for text in sources(compiled(METAL, made)).values():
        assert errors(text) == []


def test_metal() -> None:
    check_metal("bf16", 16)


@pytest.mark.slow
@pytest.mark.parametrize("cdtype", DTYPES)
@pytest.mark.parametrize("heads", HEADS)
def test_metal_of_all_types(cdtype: str, heads: int) -> None:
    check_metal(cdtype, heads)
