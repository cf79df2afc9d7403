"""NVIDIA's compiler: what it makes, what is read of what it tells, and how it fails."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from deepzig.errors import DeepZigError
from deepzig.targets.gpu import nvcc, toolkit
from deepzig.targets.gpu.names import GPUS
from deepzig.targets.gpu.nvcc import Fatbin, fatbin
from deepzig.targets.gpu.preludes import prelude

from .sass import architectures, cuobjdump, disassembled, matrix_instructions

ARCHS = {"sm_80", "sm_89", "sm_90a", "ptx_80"}
SOURCE = (
    prelude("cuda")
    + """
extern "C" __global__ void __launch_bounds__(96) product(const unsigned* a, const unsigned* b, float* sums, int* n) {
  float s[4] = {1.f, 2.f, 3.f, 4.f};
  int c[4] = {1, 2, 3, 4};
  dz_mma_bf16(s, a + 4 * threadIdx.x, b + 2 * threadIdx.x);
  dz_mma_s8(c, a + 4 * threadIdx.x, b + 2 * threadIdx.x);
  for (int i = 0; i < 4; ++i) sums[4 * threadIdx.x + i] = s[i], n[4 * threadIdx.x + i] = c[i];
}

extern "C" __global__ void __launch_bounds__(333) divide(const float* x, float* y, int n) {
  __shared__ float row[333];
  row[threadIdx.x] = expf(x[threadIdx.x]);
  __syncthreads();
  y[threadIdx.x] = row[(threadIdx.x + n) % 333] / (x[n] + 1.f) * x[0] + x[1];
}

extern "C" __global__ void __launch_bounds__(1024) spills(const float* x, float* y) {
  float v[90];
  #pragma unroll
  for (int i = 0; i < 90; ++i) v[i] = x[i * 1024 + threadIdx.x];
  __syncthreads();
  #pragma unroll
  for (int i = 0; i < 90; ++i) v[i] = v[i] * v[(i * 7 + 3) % 90] + v[(i + 5) % 90];
  __syncthreads();
  #pragma unroll
  for (int i = 0; i < 90; ++i) y[i * 1024 + threadIdx.x] = v[(i * 11) % 90];
}
"""
)


@pytest.fixture(scope="module")
def code() -> Iterator[Fatbin]:
    if toolkit.find_tool("nvcc") is None:
        pytest.skip("nvcc is not installed")
    yield fatbin(SOURCE, ARCHS)


def test_there_is_code_for_every_architecture(code: Fatbin) -> None:
    assert architectures(code.data) == ARCHS
    assert code.data[:4] == b"\x50\xed\x55\xba"  # fatbinary.h: FATBIN_MAGIC
    for arch in ARCHS - {"ptx_80"}:
        assert set(disassembled(code.data, arch)) == {"product", "divide", "spills"}


def test_matrix_units_are_used(code: Fatbin) -> None:
    for arch in ARCHS - {"ptx_80"}:
        used = {name: matrix_instructions(text) for name, text in disassembled(code.data, arch).items()}
        assert used == {"product": {"HMMA", "IMMA"}, "divide": set(), "spills": set()}


def test_what_kernels_take(code: Fatbin) -> None:
    told = {(u.kernel, u.arch): u for u in code.usage}
    assert told.keys() == {(k, a) for k in ("product", "divide", "spills") for a in ARCHS - {"ptx_80"}}
    for (kernel, _), usage in told.items():
        assert 8 <= usage.registers <= 128
        assert usage.shared == (333 * 4 if kernel == "divide" else 0)
        assert (usage.spills > 0) == (kernel == "spills") == (usage.stack > 0)


def test_spills_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="deepzig"):
        made = fatbin(SOURCE, {"sm_80"})
    (bad,) = (u for u in made.usage if u.spills)
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert warnings == [f"spills spills {bad.spills} bytes of registers on sm_80"]
    assert any(r.getMessage().startswith("3 kernels for sm_80: ") for r in caplog.records)


def test_arithmetic_is_ieee(code: Fatbin) -> None:
    """Quotients are rounded, not approximate; products and sums are fused; small numbers are kept."""
    text = cuobjdump(code.data, "-ptx")
    assert "div.rn.f32" in text and "fma.rn.f32" in text
    assert not re.search(r"(add|mul|div|fma)(\.\w+)*\.ftz", text)


def test_the_same_source_gives_the_same_bytes(code: Fatbin) -> None:
    assert fatbin(SOURCE, ARCHS).data == code.data


@pytest.mark.slow
def test_every_architecture_that_can_be_named(code: Fatbin) -> None:
    archs = set(GPUS["cuda"].archs)
    assert architectures(fatbin(SOURCE, archs).data) == archs


def refusal(source: str, archs: set[str]) -> str:
    with pytest.raises(DeepZigError) as caught:
        fatbin(source, archs)
    return str(caught.value)


def test_source_that_is_wrong(code: Fatbin) -> None:
    where = toolkit.find_tool("nvcc")
    assert refusal('extern "C" __global__ void k(float* x) { x[0] = nothing(x); }', {"sm_80", "ptx_80"}) == (
        'nvcc refused the kernels: kernels.cu(1): error: identifier "nothing" is undefined\n'
        f"  at: {where}, ptx_80, sm_80\n"
        "  fix: rerun with --traceback"
    )
    shared = 'extern "C" __global__ void k(float* x) { __shared__ float s[20000]; s[threadIdx.x] = x[0]; x[1] = s[3]; }'
    assert refusal(shared, {"sm_80"}).startswith(
        "nvcc refused the kernels: ptxas error   : Entry function 'k' uses too much shared data (0x13880 bytes, "
    )


def test_an_architecture_that_nvcc_does_not_know(code: Fatbin) -> None:
    assert refusal("", {"sm_50"}) == (
        "nvcc does not know one of sm_50\n"
        f"  at: {toolkit.find_tool('nvcc')}\n"
        "  fix: pip install 'deepzig[compile-cuda]', or leave it out"
    )


def test_an_old_nvcc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As that of CUDA 11, which does not know one of our options."""
    old = tmp_path / "nvcc"
    old.write_text("#!/bin/sh\necho \"nvcc fatal   : Unknown option '--compress-mode=size'\" >&2\nexit 1\n")
    old.chmod(0o755)
    monkeypatch.setattr(nvcc, "find_tool", lambda name: old)
    assert refusal("", {"sm_80"}) == (
        f"nvcc is too old\n  at: {old}\n  fix: set CUDA_HOME to a toolkit of version 13, or take this one off the path "
        "and pip install 'deepzig[compile-cuda]'"
    )


def test_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvcc, "find_tool", lambda name: None)
    assert refusal("", {"sm_80"}) == (
        "there is no CUDA compiler\n  at: nvcc\n  fix: pip install 'deepzig[compile-cuda]', or set CUDA_HOME"
    )


def test_no_cpp_compiler(code: Fatbin, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """nvcc preprocesses with the system's compiler."""
    tool = toolkit.find_tool("nvcc")
    for program in ("sh", "rm", "cat"):
        (tmp_path / program).symlink_to(str(shutil.which(program)))
    monkeypatch.setattr(nvcc, "find_tool", lambda name: tool)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert refusal("", {"sm_80"}) == (
        f"nvcc needs a C++ compiler\n  at: {tool}\n  fix: install g++, or name one with NVCC_CCBIN"
    )


def program(folder: Path, name: str) -> Path:
    folder.mkdir(parents=True)
    (folder / name).touch(0o755)
    return folder / name


def test_where_tools_are_looked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """CUDA_HOME before the path, the path before packages, the newest package first."""
    packages = [program(tmp_path / "nvidia" / name / "bin", "some-tool") for name in ("cu12", "cu13")]
    on_path = program(tmp_path / "path", "some-tool")
    home = program(tmp_path / "home" / "bin", "some-tool")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(toolkit, "_packages", lambda: sorted((p.parent for p in packages), reverse=True))
    for variable in toolkit.HOMES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert toolkit.find_tool("some-tool") == packages[1]
    monkeypatch.setenv("PATH", str(on_path.parent))
    assert toolkit.find_tool("some-tool") == on_path
    monkeypatch.setenv("CUDA_PATH", str(tmp_path / "home"))
    assert toolkit.find_tool("some-tool") == home
    assert toolkit.find_tool("another-tool") is None
