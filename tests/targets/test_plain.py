"""Kernels of unfused ops against the ops' numpy meanings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from deepzig.ir import OPS, TensorType
from deepzig.targets.cpu.layout import cache_row
from deepzig.targets.cpu.plain import PLAIN, cache_write, plain
from deepzig.targets.plain import COMPUTE, Plain

from .latents import read_rows, to_bits, to_f32

Array = npt.NDArray[Any]
Build = Callable[[Any], Callable[..., None]]

SYMBOLS = {"n": 7, "b": 3, "p": 2, "p*5": 10, "pages": 11, "l": 3}
"""Sizes of the symbolic dimensions; a page has 5 positions."""

BELOW = {"seq": "b", "pos": "p*5", "table": "pages", "ids": 6}
"""Integer inputs: what their values lie below."""

CASES: list[tuple[str, dict[str, Any], list[str]]] = [
    ("add", {}, ["f32[n, 13]", "f32[n, 13]"]),
    ("bias_add", {}, ["f32[n, 3, 13]", "f32[13]"]),
    ("mul", {}, ["f32[n, 3, 5]", "f32[n, 3, 5]"]),
    ("scale", {"by": 0.3}, ["f32[n, 13]"]),
    ("sigmoid", {}, ["f32[n, 13]"]),
    ("silu", {}, ["f32[n, 13]"]),
    ("slice", {"axis": 1, "begin": 2, "end": 9}, ["f32[n, 13]"]),
    ("slice", {"axis": 3, "begin": 1, "end": 6}, ["f32[b, p*5, 3, 7]"]),
    ("slice", {"axis": 0, "begin": 3, "end": 10}, ["bf16[11, 13]"]),
    ("concat", {"axis": 2}, ["f32[n, 3, 5]", "f32[n, 3, 4]"]),
    ("concat", {"axis": 0}, ["f16[3, 5]", "f16[4, 5]"]),
    ("reshape", {"shape": ("n", 3, 5)}, ["f32[n, 15]"]),
    ("reshape", {"shape": ("b", "p*5", 21)}, ["f32[b, p*5, 3, 7]"]),
    ("reshape", {"shape": (5, 2, 9)}, ["f32[6, 15]"]),
    ("transpose", {"axes": (2, 0, 3, 1)}, ["f32[n, 3, 5, 7]"]),
    ("transpose", {"axes": (1, 0)}, ["bf16[9, 5]"]),
    ("expand", {"axis": 2, "size": 3}, ["f32[b, p*5, 7]"]),
    ("expand", {"axis": 1, "size": 5}, ["f32[n, 9]"]),
    ("rope", {"interleaved": True}, ["f32[n, 10]", "f32[n, 10]"]),
    ("rope", {"interleaved": False}, ["f32[n, 3, 6]", "f32[n, 6]"]),
    ("cache_read", {}, ["bf16[pages, 5, 9]", "i32[b, p]"]),
    ("cache_read", {}, ["f32[pages, 5, 16]", "i32[b, p]"]),
    ("attend", {"scale": 0.7},
     ["f32[n, 3, 7]", "f32[b, p*5, 3, 7]", "f32[b, p*5, 3, 11]", "i32[n]", "i32[n]"]),
    ("mask_groups", {"groups": 3, "keep": 2, "best": 2}, ["f32[n, 21]"]),
    ("mask_groups", {"groups": 7, "keep": 3, "best": 1}, ["f32[n, 21]"]),
    ("mask_groups", {"groups": 1, "keep": 1, "best": 2}, ["f32[n, 5]"]),
    ("softmax", {}, ["f32[n, 13]"]),
    ("topk", {"k": 5}, ["f32[n, 13]"]),
    ("gather", {}, ["f32[n, 6]", "i32[n, 4]"]),
    ("normalize", {}, ["f32[n, 13]"]),
    ("forced_route", {"layer": 2}, ["i32[n, l, 5]"]),
    *(("linear", {}, ["f32[b, p*5, 37]", f"{dtype}[11, 37]"]) for dtype in ("f32", "bf16", "f16")),
    ("linear", {}, ["f32[n, 3, 37]", "bf16[11, 37]", "f32[11]"]),
    *(("expert_linear", {}, ["f32[n, 4, 37]", f"{dtype}[6, 11, 37]", "i32[n, 4]"]) for dtype in ("f32", "bf16", "f16")),
    ("combine", {}, ["f32[n, 5, 13]", "f32[n, 5]"]),
]  # fmt: skip


def parse(text: str) -> TensorType:
    dtype, dims = text[:-1].split("[")
    return TensorType(dtype, tuple(int(d) if d.isdigit() else d for d in dims.split(", ")))


def size(dim: int | str) -> int:
    return dim if isinstance(dim, int) else SYMBOLS[dim]


def random(rng: np.random.Generator, type_: TensorType, name: str) -> Array:
    """Stored values of a type."""
    shape = tuple(map(size, type_.shape))
    if type_.dtype == "i32":
        return rng.integers(0, size(BELOW.get(name, 100)), shape).astype(np.int32)
    return to_bits(rng.standard_normal(shape).astype(np.float32), type_.dtype)


def values(stored: Array, dtype: str) -> Array:
    return stored if dtype == "i32" else to_f32(stored, dtype)


def check(
    build: Build,
    name: str,
    attrs: Mapping[str, Any],
    types: list[TensorType],
    arrays: list[Array],
    plain: Plain = plain,
) -> None:
    op = OPS[name]
    (output,) = op.infer(types, attrs)
    want = op.meaning(*(values(a, t.dtype) for a, t in zip(arrays, types, strict=True)), **attrs)
    got = np.full(want.shape, 77, to_bits(np.zeros(1), output.dtype).dtype if output.dtype != "i32" else np.int32)
    build(plain(name, types, attrs, output))(*arrays, got)
    if output.dtype == "i32":
        assert np.array_equal(got, want)
        return
    y = to_f32(got, output.dtype)
    finite = np.isfinite(want)
    assert np.array_equal(np.isfinite(y), finite)
    assert np.array_equal(y[~finite], want[~finite])
    assert np.linalg.norm(y[finite] - want[finite]) <= 2e-6 * np.linalg.norm(want[finite])


@pytest.mark.parametrize(("name", "attrs", "inputs"), CASES, ids=lambda v: v if isinstance(v, str) else "")
def test_an_op_means_what_numpy_says(build: Build, name: str, attrs: dict[str, Any], inputs: list[str]) -> None:
    rng = np.random.default_rng(len(name))
    types = list(map(parse, inputs))
    arrays = [random(rng, t, slot.name) for t, slot in zip(types, OPS[name].inputs, strict=False)]
    check(build, name, attrs, types, arrays)


def test_every_op_has_a_case() -> None:
    assert {name for name, _, _ in CASES} == COMPUTE.keys() == PLAIN.keys() - {"cache_write"}


@pytest.mark.parametrize(("name", "attrs"), [("topk", {"k": 5}), ("mask_groups", {"groups": 3, "keep": 2, "best": 2})])
def test_ties_go_to_the_lower_index(build: Build, name: str, attrs: dict[str, Any]) -> None:
    x = np.random.default_rng(2).integers(0, 3, (7, 12)).astype(np.float32)
    x[0, 2:] = -np.inf
    check(build, name, attrs, [parse("f32[n, 12]")], [x])


def test_attention_never_looks_at_slots_not_yet_written(build: Build) -> None:
    rng = np.random.default_rng(3)
    types = list(map(parse, ["f32[n, 2, 3]", "f32[b, p*5, 2, 3]", "f32[b, p*5, 2, 7]", "i32[n]", "i32[n]"]))
    q, k, v, seq, pos = (random(rng, t, slot.name) for t, slot in zip(types, OPS["attend"].inputs, strict=True))
    pos %= 6
    k[:, 6:], v[:, 6:] = np.nan, np.nan
    check(build, "attend", {"scale": 0.4}, types, [q, k, v, seq, pos])


@pytest.mark.parametrize(("dtype", "width"), [("f32", 9), ("bf16", 9), ("f16", 9), ("q8", 9), ("q8", 131)])
def test_a_cache_row_is_written_and_read_in_its_logical_width(build: Build, dtype: str, width: int) -> None:
    rng = np.random.default_rng(4)
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
    build(cache_write(width, page, dtype))(rows, seq, pos, table, cache)
    assert np.array_equal(cache, want)

    y = np.zeros((3, 2 * page, width), np.float32)
    physical = [TensorType(type_, ("pages", page, size)), parse("i32[b, p]")]
    build(plain("cache_read", physical, {}, TensorType("f32", ("b", "p*5", width))))(cache, table, y)
    assert np.array_equal(y, OPS["cache_read"].meaning(read_rows(want, dtype, width)[..., :width], table))


def test_a_symbol_is_made_of_op_types_and_attributes() -> None:
    x = parse("f32[n, 13]")
    names = [str(plain("scale", [x], {"by": by}, x).attrs["global_symbol"]) for by in (0.3, 0.3, 0.4)]
    assert names[0] == names[1] != names[2]
    assert int(plain("scale", [x], {"by": 0.3}, x).attrs["op_pattern"]) == 8
