"""The interpreter: it runs what the text says, and rounds where a type says so."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from deepzig.ir import interpret, parse
from deepzig.ir.interpret import round_to
from deepzig.ir.quantize import QuantizedMatrix, quantize_rows

STORED = {"bf16": ml_dtypes.bfloat16, "f16": np.float16}


@pytest.mark.parametrize("dtype", STORED)
def test_rounding_is_to_nearest_even(dtype: str) -> None:
    rng = np.random.default_rng(51)
    bits = rng.integers(0, 2**32, 100_000, np.uint32)
    bits[: len(bits) // 2] &= np.uint32(0xFFFF8000 if dtype == "bf16" else 0xFFFFF000)  # ties
    x = bits.view(np.float32)
    x = x[np.isfinite(x)]
    with np.errstate(over="ignore"):
        assert np.array_equal(round_to(x, dtype), x.astype(STORED[dtype]).astype(np.float32), equal_nan=True)


def test_rounding_to_the_other_types() -> None:
    x = np.random.default_rng(52).standard_normal(100) * 9
    assert np.array_equal(round_to(x, "f32"), x.astype(np.float32))
    assert round_to(x, "i32").dtype == np.int32 and np.array_equal(round_to(x, "i32"), np.trunc(x))


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
def test_a_cache_rounds_what_is_written(dtype: str) -> None:
    module = parse(f"""\
state @cache: {dtype}[pages, 4, 6]

graph decode(%rows: f32[n, 6], %seq: i32[n], %pos: i32[n], %table: i32[b, p]):
  %0: {dtype}[pages, 4, 6] = cache_write(@cache, %rows, %seq, %pos, %table)
  %1: f32[b, p*4, 6] = cache_read(%0, %table)
  return %1, %0
""")
    rng = np.random.default_rng(53)
    old = round_to(rng.standard_normal((3, 4, 6)), dtype)
    before = old.copy()
    rows = rng.standard_normal((2, 6)).astype(np.float32)
    inputs = {"rows": rows, "seq": np.array([0, 0]), "pos": np.array([3, 6]), "table": np.array([[2, 0]])}
    (read,), states = interpret(module, "decode", inputs, {}, {"cache": old})
    assert np.array_equal(old, before)
    want = old.copy()
    want[2, 3], want[0, 2] = round_to(rows, dtype)
    assert np.array_equal(states["cache"], want)
    assert np.array_equal(read[0], np.concatenate([want[2], want[0]]))


def test_a_cache_of_8_bits_rounds_rows_in_groups_of_64() -> None:
    """Not so a matrix of 8 bits while it is put together. Rows that were there stay, but for the last bit."""
    module = parse("""\
param @w: q8[2, 130]
@both: q8[4, 130] = concat(@w, @w) {axis=0}
state @cache: q8[pages, 4, 130]

graph decode(%rows: f32[n, 130], %seq: i32[n], %pos: i32[n], %table: i32[b, p]):
  %0: q8[pages, 4, 130] = cache_write(@cache, %rows, %seq, %pos, %table)
  %1: f32[b, p*4, 130] = cache_read(%0, %table)
  %2: f32[n, 4] = linear(%rows, @both)
  return %1, %2, %0
""")
    rng = np.random.default_rng(54)
    old = round_to(rng.standard_normal((3, 4, 130)), "q8")
    w, rows = rng.standard_normal((2, 130), np.float32), rng.standard_normal((2, 130), np.float32)
    inputs = {"rows": rows, "seq": np.array([0, 0]), "pos": np.array([3, 6]), "table": np.array([[2, 0]])}
    (read, y), states = interpret(module, "decode", inputs, {"w": w}, {"cache": old})
    want = old.copy()
    want[2, 3], want[0, 2] = quantize_rows(rows)
    assert np.abs(want[2, 3] - rows[0]).max() > 1e-3
    assert np.allclose(states["cache"], want, 3e-7, 0) and np.array_equal(states["cache"][2, 3], want[2, 3])
    assert np.allclose(read[0], np.concatenate([want[2], want[0]]), 3e-7, 0)
    assert np.array_equal(y, rows @ QuantizedMatrix.of(np.concatenate([w, w]), "q8").T)


def test_constants_weights_and_parameters() -> None:
    """A parameter that is given goes before the constant of the module."""
    module = parse("""\
param @w: bf16[4, 3]
const @c: f32[2] = [1.5, -2.25]
@part: bf16[2, 3] = slice(@w) {axis=0, begin=1, end=3}

graph f(%x: f32[n, 3]):
  %0: f32[n, 2] = linear(%x, @part, @c)
  return %0
""")
    rng = np.random.default_rng(54)
    w, x = round_to(rng.standard_normal((4, 3)), "bf16"), rng.standard_normal((5, 3)).astype(np.float32)
    for params in ({"w": w}, {"w": w, "c": np.array([0.5, 3], np.float32)}):
        (y,), states = interpret(module, "f", {"x": x}, params, {})
        bias = params.get("c", np.array([1.5, -2.25], np.float32))
        assert np.allclose(y, x @ w[1:3].T + bias, rtol=1e-6, atol=1e-6)
        assert states == {}


@pytest.mark.parametrize("lacking", ["x", "w"])
def test_what_is_lacking(lacking: str) -> None:
    module = parse("param @w: f32[2, 3]\n\ngraph f(%x: f32[n, 3]):\n  %0: f32[n, 2] = linear(%x, @w)\n  return %0\n")
    given = {"x": {"x": np.ones((1, 3), np.float32)}, "w": {"w": np.ones((2, 3), np.float32)}}
    given[lacking] = {}
    with pytest.raises(KeyError):
        interpret(module, "f", given["x"], given["w"], {})
    with pytest.raises(KeyError, match="g"):
        interpret(module, "g", {}, {}, {})
