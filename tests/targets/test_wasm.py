"""Kernels for WebAssembly under wasmtime: tests of those for x86, with the other machine's registers and code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deepzig.sampling import sample_tokens
from deepzig.targets.cpu.sample import sample

from . import test_attention, test_linear, test_moe, test_norm, test_prefill, test_quant, test_router
from .conftest import Run
from .latents import SIZES
from .test_sample import options
from .wasm import TARGET, in_wasm

Build = Callable[[Any], Run]
TESTED = (test_attention, test_linear, test_moe, test_prefill, test_quant, test_router)


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Build:
    """Kernel -> function on numpy arrays; the tests of x86 ask for kernels with WebAssembly's registers meanwhile."""
    for module in TESTED:
        monkeypatch.setattr(module, "AVX2", TARGET.vectors)
    return lambda kernel: in_wasm(kernel, tmp_path)


def rarely(*values: Any) -> Any:
    """Parameters of a slow test."""
    return pytest.param(*values, marks=pytest.mark.slow)


def one_thread(count: int) -> None:
    """What tests set the number of threads with."""


def test_it_has_no_fused_multiply_adds() -> None:
    vectors = TARGET.vectors
    assert not vectors.fused and vectors.integers == "simd128" and vectors.tile == (2, 1)


@pytest.mark.parametrize(
    "case", [*(test_linear.PROJ[i] for i in (1, 3)), *(rarely(test_linear.PROJ[i]) for i in (2, 7))],
    ids=lambda c: f"k{c[0]}-{c[2]}",
)  # fmt: skip
def test_proj(build: Build, random_weight: Any, case: Any) -> None:
    test_linear.test_proj(build, random_weight, (*case[:-2], TARGET.vectors, case[-1]))


@pytest.mark.parametrize("case", [test_linear.GATED[1], rarely(test_linear.GATED[2])], ids=lambda c: f"k{c[0]}-{c[2]}")
def test_gated_proj(build: Build, random_weight: Any, case: Any) -> None:
    test_linear.test_gated_proj(build, random_weight, (*case[:-2], TARGET.vectors, case[-1]))


@pytest.mark.parametrize("dtype", test_quant.DTYPES)
def test_quantised(build: Build, dtype: str) -> None:
    test_quant.test_proj(build, 197, 45, 3, 2, dtype, TARGET.vectors)
    test_quant.test_extreme_codes_do_not_overflow(build, dtype)
    test_quant.test_instructions_do_not_matter(build, dtype)
    test_quant.test_gated_proj(build, dtype)


@pytest.mark.parametrize("case", [rarely(test_moe.CASES[1]), test_moe.CASES[2]], ids=lambda c: f"h{c[0]}-{c[5]}")
def test_experts(build: Build, random_weight: Any, case: Any) -> None:
    test_moe.test_layer(build, random_weight, (*case[:-2], TARGET.vectors, case[-1]))


@pytest.mark.parametrize(("dtype", "down"), [("q8", "q4"), rarely("q4", "q8")])
def test_quantised_experts(build: Build, dtype: str, down: str) -> None:
    test_quant.test_moe(build, one_thread, dtype, down, TARGET.vectors)


@pytest.mark.parametrize("dtype", ["f32", rarely("bf16"), rarely("f16"), "q8"])
def test_attention_of_few_rows(build: Build, dtype: str) -> None:
    test_attention.test_attend(build, SIZES[2], dtype)
    test_attention.test_latent_write(build, SIZES[1], True, dtype)
    if dtype != "q8":
        test_attention.test_absorb_and_lift(build, one_thread, SIZES[1], False, dtype)


def test_sections_of_a_long_context(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    test_attention.test_attend_joins_sections_of_a_long_context(build, one_thread, monkeypatch, 3)


@pytest.mark.parametrize(("dtype", "cached"), [rarely("f32", "f32"), rarely("f16", "f16"), ("bf16", "q8")])
def test_attention_of_many_rows(build: Build, dtype: str, cached: str) -> None:
    test_prefill.test_prefill(build, SIZES[2], dtype, True, cached)


def test_rows(build: Build) -> None:
    test_norm.test_rms_norm(build, one_thread, 37)
    test_norm.test_embed(build, "bf16")
    test_norm.test_take_rows(build)
    test_norm.test_rope_angles(build, 64)


@pytest.mark.parametrize(
    "case", [test_router.CASES[2], *map(rarely, test_router.CASES[7:])], ids=lambda c: f"{c[0]}-k{c[1]}"
)  # fmt: skip
def test_router_(build: Build, case: Any) -> None:
    test_router.test_router(build, case)


@pytest.mark.parametrize("vocab", [1, 515])
def test_it_draws_the_same_tokens(build: Build, vocab: int) -> None:
    given = options(200, vocab, np.random.default_rng(vocab))
    tokens = np.full(200, -1, np.int32)
    build(sample(vocab))(*given, tokens)
    np.testing.assert_array_equal(tokens, sample_tokens(*given))
