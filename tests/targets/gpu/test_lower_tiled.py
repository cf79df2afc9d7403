"""Ops of a prefill that multiply by weights, lowered and run launch by launch, against their meaning."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from deepzig.ir import OPS, TensorType
from deepzig.ir.fp8 import FP8

from .test_few import DEVICES, error
from .test_lower_products import Inputs, lowered, node
from .test_moe import routing

ROUNDED = 1e-2
"""Rows are rounded to bf16, which errs by 2^-9 at most for each element; norm-relative."""
EXACT = 1e-5


@pytest.mark.parametrize("device", DEVICES)
def test_a_projection_with_everything(gpu: Any, device: str) -> None:
    made = Inputs(np.random.default_rng(1), 71)
    x, w, norm = made.activation(83), made.matrix("f32", 29, 70), made.vector(70)
    values = (x, w, norm, made.vector(29), made.activation(29))
    proj = node("proj", values, TensorType("f32", ("n", 29)), begin=5, eps=0.1)
    whole, launches = lowered(gpu, device, made, proj, graph="prefill")
    assert launches == 2 and error(whole, OPS["proj"].meaning(*made.meant, begin=5, eps=0.1)) <= EXACT
    cut, launches = lowered(gpu, device, made, proj, binding_bytes=4 * 128 * 11, graph="prefill")
    assert launches == 4 and np.array_equal(cut, whole)


@pytest.mark.parametrize("device", DEVICES)
def test_gated(gpu: Any, device: str) -> None:
    made = Inputs(np.random.default_rng(3), 70)
    values = [made.activation(64), made.matrix("q8", 21, 64), made.matrix("q8", 21, 64)]
    gated = node("gated_proj", values, TensorType("f32", ("n", 21)))
    whole, launches = lowered(gpu, device, made, gated, graph="prefill")
    assert launches == 2 and error(whole, OPS["gated_proj"].meaning(*made.meant, None)) <= EXACT
    cut, launches = lowered(gpu, device, made, gated, binding_bytes=20 * 4 * 2 * 8, graph="prefill")
    assert launches == 4 and np.array_equal(cut, whole)


@pytest.mark.parametrize("device", DEVICES)
def test_a_mixture_in_shards(gpu: Any, device: str) -> None:
    rows, experts, hidden, width = 75, 7, 48, 20
    made = Inputs(np.random.default_rng(4), rows)
    ids, weights = routing(made.rng, rows, experts - 1, 2)
    values = [made.activation(hidden)]
    values += [made.add(a, a, TensorType(dtype, ("n", 2))) for a, dtype in ((ids, "i32"), (weights, "f32"))]
    sizes = (width, hidden), (width, hidden), (hidden, width)
    values += [made.matrix(FP8, experts, *size) for size in sizes]
    moe = node("moe", (*values, made.activation(hidden)), TensorType("f32", ("n", hidden)), shared=1)
    whole, launches = lowered(gpu, device, made, moe, graph="prefill")
    assert launches == 6 and error(whole, OPS["moe"].meaning(*made.meant, shared=1)) <= ROUNDED
    cut, launches = lowered(gpu, device, made, moe, binding_bytes=3 * 48 * 36 * 4, graph="prefill")
    assert launches == 10 and np.array_equal(cut, whole)


def test_the_rows_whose_logits_are_wanted_are_few(gpu: Any) -> None:
    made = Inputs(np.random.default_rng(5), 3)
    values = made.activation(64), made.matrix("bf16", 9, 64)
    x = made.add(made.arrays[values[0]], made.meant[0], TensorType("f32", ("r", 64)))
    y, launches = lowered(
        gpu, "cuda", made, node("linear", (x, values[1]), TensorType("f32", ("r", 9))), graph="prefill"
    )
    assert launches == 1 and error(y, OPS["linear"].meaning(made.meant[0], made.meant[1])) <= EXACT
