"""Inner loops use whole registers of the machine, and keep their sums in them."""

from __future__ import annotations

import re
from typing import Any

import pytest

from deepzig.artifacts.machines import MACHINES
from deepzig.targets.cpu.attention import mla_absorb, mla_attend, mla_lift
from deepzig.targets.cpu.features import CpuTarget, Vectors
from deepzig.targets.cpu.linear import proj
from deepzig.targets.cpu.moe import moe

from .conftest import compile_for, loops


def _proj(wdtype: str, vectors: Vectors) -> Any:
    return proj(1024, 512, wdtype, x_width=1024, begin=0, norm_eps=None, bias=False, residual=False, vectors=vectors)


def _moe(wdtype: str, vectors: Vectors) -> Any:
    return moe(1024, 512, 8, 2, 1, wdtype, wdtype, residual=True, vectors=vectors)


def _absorb(wdtype: str, vectors: Vectors) -> Any:
    return mla_absorb(16, 128, 64, 512, wdtype, True, vectors=vectors)


def _lift(wdtype: str, vectors: Vectors) -> Any:
    return mla_lift(16, 512, 128, wdtype, vectors=vectors)


def _attend(cdtype: str, vectors: Vectors) -> Any:
    return mla_attend(16, 512, 64, 16, cdtype, 0.1, vectors=vectors)


@pytest.mark.parametrize("make", [_proj, _moe, _attend])
@pytest.mark.parametrize(("level", "dtype"), [("x86-64-v4", "bf16"), ("x86-64-v4", "f32")])
def test_multiply_adds(make: Any, level: str, dtype: str) -> None:
    check(make, level, dtype, r"\svfmadd\w+ps\s[^\n]*%(\wmm)")


@pytest.mark.parametrize("make", [_proj, _moe, _absorb, _lift])
def test_products_of_pairs(make: Any) -> None:
    check(make, "avx512-bf16", "bf16", r"\svdpbf16ps\s[^\n]*%(\wmm)")


@pytest.mark.parametrize("make", [_proj, _moe])
@pytest.mark.parametrize("dtype", ["q8", "q4"])
def test_products_of_bytes(make: Any, dtype: str) -> None:
    check(make, "avx512-vnni", dtype, r"\svpdpbusd\s[^\n]*%(\wmm)")


def check(make: Any, level: str, dtype: str, product: str) -> None:
    """There are loops of products, all of them of 512 bits, and no vector goes to the stack or comes from it."""
    target = CpuTarget(MACHINES[level].features)
    text = str(compile_for(make(dtype, target.vectors), target.tvm_target())[0].mod.inspect_source("asm"))
    inner = [loop for loop in loops(text) if len(re.findall(product, loop)) >= 4]
    assert inner
    for loop in inner:
        assert set(re.findall(product, loop)) == {"zmm"}
        assert not re.search(r"\(%rsp\)[^\n]*%[yz]mm|%[yz]mm\d+, -?\d*\(%rsp\)", loop)
