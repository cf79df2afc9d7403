"""The shared vector expressions against float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tvm.script import tirx as T

from deepzig.targets.cpu import vector

REFERENCES: dict[str, Callable[[Any], Any]] = {
    "exp": np.exp,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "silu": lambda x: x / (1 + np.exp(-x)),
}


def elementwise(name: str, lanes: int) -> Any:
    """A kernel that applies one of vector's functions to source[n, lanes]."""
    function = getattr(vector, name)

    @T.prim_func(s_tir=True)
    def kernel(x: T.handle, y: T.handle):  # type: ignore[no-untyped-def]
        T.func_attr({"global_symbol": f"test_{name}"})
        n = T.int64()
        source = T.match_buffer(x, (n, lanes), "float32")
        target = T.match_buffer(y, (n, lanes), "float32")
        for i in T.serial(n):
            target[i, vector.at(0, lanes)] = function(source[i, vector.at(0, lanes)], lanes)

    return kernel


@pytest.mark.parametrize("name", REFERENCES)
def test_relative_error(build: Any, name: str) -> None:
    x = np.concatenate([np.linspace(-87.3, 88.3, 160_000), np.linspace(-1, 1, 160_000)])
    x = x.astype(np.float32).reshape(-1, 16)
    y = np.empty_like(x)
    build(elementwise(name, 16))(x, y)
    np.testing.assert_allclose(y, REFERENCES[name](x.astype(np.float64)), rtol=2e-7, atol=0)

    scalars = np.empty((x.size, 1), np.float32)
    build(elementwise(name, 1))(x.reshape(-1, 1), scalars)
    assert np.array_equal(scalars.reshape(x.shape), y)


def test_exp_beyond_the_range(build: Any) -> None:
    x = np.array([-np.inf, -1e30, -100, -87.34, 0, -0.0, 88.5, 1e30, np.inf] + [1] * 7, np.float32)
    x = x.reshape(1, 16)
    y = np.empty_like(x)
    build(elementwise("exp", 16))(x, y)
    assert y[0, :6].tolist() == [0, 0, 0, 0, 1, 1]
    assert np.all(y[0, 6:9] == y[0, 6]) and 2.3e38 < y[0, 6] < np.inf


@pytest.mark.parametrize("wdtype", ["bf16", "f16"])
def test_widen_every_finite_value(build: Any, wdtype: str) -> None:
    @T.prim_func(s_tir=True)
    def kernel(w: T.handle, even: T.handle, odd: T.handle):  # type: ignore[no-untyped-def]
        T.func_attr({"global_symbol": "test_widen"})
        n = T.int64()
        pairs_in = T.match_buffer(w, (n, 16), "uint32")
        even_out = T.match_buffer(even, (n, 16), "float32")
        odd_out = T.match_buffer(odd, (n, 16), "float32")
        for i in T.serial(n):
            even_out[i, vector.at(0)] = vector.widen(pairs_in[i, vector.at(0)], wdtype, False)
            odd_out[i, vector.at(0)] = vector.widen(pairs_in[i, vector.at(0)], wdtype, True)

    bits = np.arange(2**16, dtype=np.uint32)
    exponent = 0x7C00 if wdtype == "f16" else 0x7F80
    bits = bits[bits & exponent != exponent]
    bits = bits[: bits.size // 32 * 32]
    if wdtype == "f16":
        exact = bits.astype(np.uint16).view(np.float16).astype(np.float32)
    else:
        exact = (bits << 16).view(np.float32)
    pairs = (bits[0::2] | bits[1::2] << 16).reshape(-1, 16)
    even, odd = np.empty(pairs.shape, np.float32), np.empty(pairs.shape, np.float32)
    build(kernel)(pairs, even, odd)
    assert np.array_equal(even.ravel().view(np.uint32), exact[0::2].view(np.uint32))
    assert np.array_equal(odd.ravel().view(np.uint32), exact[1::2].view(np.uint32))
