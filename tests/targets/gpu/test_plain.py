"""Kernels of unfused ops on GPUs against the ops' numpy meanings."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from deepzig.ir import OPS, TensorType
from deepzig.targets.gpu.layout import cache_row
from deepzig.targets.gpu.plain import PLAIN, cache_write, plain
from deepzig.targets.plain import COMPUTE

from ..latents import read_rows, to_bits
from ..test_plain import CASES, check, parse, random
from .conftest import GPUS

pytestmark = pytest.mark.parametrize("device", GPUS)


@pytest.fixture
def build(gpu: Any, device: str) -> Any:
    return gpu(device)


@pytest.mark.parametrize(("name", "attrs", "inputs"), CASES, ids=lambda v: v if isinstance(v, str) else "")
def test_an_op_means_what_numpy_says(build: Any, name: str, attrs: dict[str, Any], inputs: list[str]) -> None:
    rng = np.random.default_rng(len(name) + 1)
    types = list(map(parse, inputs))
    arrays = [random(rng, t, slot.name) for t, slot in zip(types, OPS[name].inputs, strict=False)]
    check(build, name, attrs, types, arrays, plain)


def test_every_op_has_a_kernel(device: str) -> None:
    assert PLAIN.keys() == COMPUTE.keys() | {"cache_write"}


@pytest.mark.parametrize(("name", "attrs"), [("topk", {"k": 5}), ("mask_groups", {"groups": 3, "keep": 2, "best": 2})])
def test_ties_go_to_the_lower_index(build: Any, name: str, attrs: dict[str, Any]) -> None:
    x = np.random.default_rng(2).integers(0, 3, (7, 12)).astype(np.float32)
    x[0, 2:] = -np.inf
    check(build, name, attrs, [parse("f32[n, 12]")], [x], plain)


def test_no_rows_are_no_mistake(build: Any) -> None:
    """A linear with a bias has two stages, the first of which goes into memory of its own."""
    types = list(map(parse, ["f32[n, 3, 37]", "bf16[11, 37]", "f32[11]"]))
    w, bias = random(np.random.default_rng(3), types[1], "w"), np.ones(11, np.float32)
    y = np.full((2, 3, 11), 7, np.float32)
    build(plain("linear", types, {}, parse("f32[n, 3, 11]")))(np.ones((0, 3, 37), np.float32), w, bias, y[:0])
    assert (y == 7).all()


@pytest.mark.parametrize(("dtype", "width"), [("f32", 9), ("bf16", 9), ("f16", 9), ("q8", 9), ("q8", 131)])
def test_a_cache_row_is_written_and_read_in_its_logical_width(build: Any, dtype: str, width: int) -> None:
    rng = np.random.default_rng(5)
    page, pages = 5, 11
    type_, size = cache_row(dtype, width)
    rows, table = rng.standard_normal((7, width)).astype(np.float32), rng.permutation(pages)[:6].reshape(3, 2)
    seq, pos = np.array([0, 0, 0, 1, 1, 2, 2], np.int32), np.array([4, 5, 6, 0, 1, 8, 9], np.int32)
    table = table.astype(np.int32)
    values = np.zeros((pages, page, width if dtype == "q8" else size), np.float32)  # zero beyond the width
    values[..., :width] = rng.standard_normal((pages, page, width))
    new = np.pad(rows, [(0, 0), (0, values.shape[-1] - width)])
    cache = to_bits(values, dtype)
    want = OPS["cache_write"].meaning(cache, to_bits(new, dtype), seq, pos, table)
    cache[table[seq, pos // page], pos % page] = 77  # nothing stays of what was there
    physical = [TensorType(type_, ("pages", page, size)), parse("i32[b, p]")]
    write, read = build.all(
        cache_write(width, page, dtype), plain("cache_read", physical, {}, TensorType("f32", ("b", "p*5", width)))
    )
    write(rows, seq, pos, table, cache)
    assert np.array_equal(cache, want)
    y = np.zeros((3, 2 * page, width), np.float32)
    read(cache, table, y)
    assert np.array_equal(y, OPS["cache_read"].meaning(read_rows(want, dtype, width)[..., :width], table))
