"""A single product against PyTorch and against the peak of the multiply-add units."""

from __future__ import annotations

import platform
import shutil
from pathlib import Path

import numpy as np
import pytest
from peak import FAMILIES, FLOATS, Peak
from products import product_report, product_rows

from deepzig.runtime.machine import gemm_flops


def test_the_peak_is_above_any_product(tmp_path: Path) -> None:
    if shutil.which("cc") is None or platform.machine() != "x86_64":
        pytest.skip("needs a C compiler on x86-64")
    peak = Peak(tmp_path)
    floats = peak.family("f32")
    assert floats in FLOATS
    one, two = (max(peak.flops(floats, threads, 0.05) for _ in range(3)) for threads in (1, 2))
    assert one > 0.5e9 and two > 0.7 * one
    assert two > 0.7 * gemm_flops(2, 0.05, 512)  # numpy may have caught a quieter moment
    for kind in ("bf16", "q8"):  # twice and four times as many operations, where there are instructions for them
        family = peak.family(kind)
        assert family is not None and peak.flops(family, 1, 0.05) > 0.5 * one


def test_a_cpu_of_another_kind_has_no_peak(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("Features : fp asimd asimddp\n")
    for proc in (tmp_path, tmp_path / "nowhere"):
        assert not any(map(Peak(tmp_path, proc).family, FAMILIES))


@pytest.mark.parametrize(
    ("flags", "bf16", "q4", "fp8"),
    [
        ("fma", "fma", "fma", "fma"),
        ("fma avx512f avx512_vnni", "avx512f", "avx512_vnni", "avx512f"),
        ("fma avx512f avx512_vnni avx512_bf16", "avx512_bf16", "avx512_vnni", "avx512f"),
        ("fma avx512f avx512_vnni avx512_bf16 amx_bf16 amx_int8", "amx_bf16", "amx_int8", "avx512f"),
    ],
)
def test_each_kind_of_weights_has_its_peak(flags: str, bf16: str, q4: str, fp8: str, tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(f"flags : fpu avx2 {flags}\n")
    peak = Peak(tmp_path, tmp_path)
    if shutil.which("cc") is None or platform.machine() != "x86_64":
        assert peak.family("bf16") is None
    else:
        assert (peak.family("bf16"), peak.family("q4"), peak.family("fp8")) == (bf16, q4, fp8)


@pytest.mark.slow
def test_products(tmp_path: Path) -> None:
    said: list[str] = []
    rows = product_rows(
        ["bf16", "q4", "fp8", "q5"], lambda text: "x" in text, tmp_path, 2, 1, 300.0, lambda: 1e9, True, said.append
    )
    assert [row.label for row in rows] == [f"product 512x2048x2048 {kind}" for kind in ("bf16", "q4", "fp8")]
    assert any("q5" in text and text.endswith("; left out") for text in said)
    for row in rows:
        assert row.share == pytest.approx(row.flops / 1e9) and row.flops > 1e9
        assert set(row.ratios) == {"torch bfloat16", "torch float32"} and np.all(np.array([*row.ratios.values()]) > 0)
    assert len(product_report(rows).splitlines()) == 4
    assert product_rows(["bf16"], lambda _: False, tmp_path, 2, 1, 300.0, lambda: 1e9, True, said.append) == []
