"""The emulated instructions against numpy, and that their misuse is found."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deepzig.artifacts.cpu_features import detect
from deepzig.artifacts.machines import MACHINES
from deepzig.targets.cpu.bf16 import dot, instructions
from deepzig.targets.cpu.features import CpuTarget
from deepzig.targets.cpu.vector import at as lanes
from deepzig.targets.emit import kernel, loop, store, symbols

from .conftest import Array, called, compile_for
from .emulate import C_SOURCE, emulated, loaded, zig
from .latents import to_f32

ROWS, BYTES = 16, 64


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("emulate") / "emulate.so"
    zig("x86_64-linux-gnu", "-mcpu=x86_64_v3", "-shared", "-nostdlib", str(C_SOURCE), "-o", str(path))
    return loaded(path)


@pytest.fixture(autouse=True)
def forget(library: Any) -> Any:
    yield
    library.emulated_tilerelease()
    library.emulated_fault()


def config(rows: int = ROWS, width: int = BYTES, palette: int = 1) -> Array:
    made = np.zeros(64, np.uint8)
    made[0], made[16:32:2], made[48:56] = palette, width, rows
    return made


def load(library: Any, tile: int, data: Array) -> None:
    library.emulated_tileloadd64(tile, at(data), ctypes.c_int64(data.strides[0]))


def at(data: Array) -> ctypes.c_void_p:
    return ctypes.c_void_p(data.ctypes.data)


def product(library: Any, name: str, start: Array, left: Array, right: Array) -> Array:
    library.emulated_ldtilecfg(at(config()))
    for tile, data in enumerate((start, left, right)):
        load(library, tile, data)
    getattr(library, f"emulated_{name}")(0, 1, 2)
    out = np.zeros_like(start)
    library.emulated_tilestored64(0, at(out), ctypes.c_int64(out.strides[0]))
    library.emulated_tilerelease()
    assert library.emulated_fault() == b""
    return out


def test_tdpbssd_is_exact(library: Any) -> None:
    rng = np.random.default_rng(1)
    left, weight = (rng.integers(-128, 128, (ROWS, BYTES), np.int8) for _ in range(2))
    start = rng.integers(-1000, 1000, (ROWS, ROWS), np.int32)
    packed = np.ascontiguousarray(weight.reshape(ROWS, ROWS, 4).swapaxes(0, 1)).reshape(ROWS, BYTES)
    want = start + left.astype(np.int32) @ weight.astype(np.int32).T
    assert np.array_equal(product(library, "tdpbssd", start, left, packed), want)
    assert (library.emulated_count(0), library.emulated_count(1), library.emulated_count(1)) == (0, 1, 0)


def test_tdpbf16ps_adds_even_and_odd_products_apart(library: Any) -> None:
    """Also that subnormal numbers are zeros."""
    rng = np.random.default_rng(2)
    bits = (rng.standard_normal((2, ROWS, 32), np.float32).view(np.uint32) >> 16).astype(np.uint16)
    bits[0, 3, ::3], bits[1, 5, 1::4] = 0x007F, 0x8001
    left, weight = bits
    start = rng.standard_normal((ROWS, ROWS), np.float32)
    packed = np.ascontiguousarray(weight.reshape(ROWS, ROWS, 2).swapaxes(0, 1)).reshape(ROWS, 32)
    y = product(library, "tdpbf16ps", start, left, packed)
    flushed = [np.where(b & 0x7F80, to_f32(b, "bf16"), np.float32(0)) for b in bits]
    chains = np.zeros((2, ROWS, ROWS), np.float32)
    for k in range(32):  # a product of two bf16 is exact in f32, so a rounded sum is a fused multiply-add
        chains[k % 2] += flushed[0][:, None, k] * flushed[1][None, :, k]
    assert np.array_equal(y, start + (chains[0] + chains[1]))


def dots() -> Any:
    """A kernel of one `vdpbf16ps` for each row."""
    with kernel("dots") as f:
        (n,) = symbols("n")
        sums, out = (f.tensor(name, "f32", n, 16) for name in ("sums", "out"))
        a, b = (f.tensor(name, "u32", n, 16) for name in ("a", "b"))
        instructions()
        with loop(n) as i:
            store(out, dot(*(x[i, lanes(0)] for x in (sums, a, b))), i, lanes(0))
    return f.function


def bf16(rng: np.random.Generator, exponents: tuple[int, int], n: int) -> Array:
    """Bits with all signs and fractions, and exponents in a range."""
    signs, fractions = rng.integers(0, 2, (n, 32)), rng.integers(0, 128, (n, 32))
    return (signs << 15 | rng.integers(*exponents, (n, 32)) << 7 | fractions).astype(np.uint16)


PAIRS = CpuTarget(MACHINES["avx512-bf16"].features)
EDGES = np.array([0, 1, 0x7F, 0x80, 0x81, 0x3F80, 0x3F81, 0x7F7F, 0x7F80, 0x7F81, 0x7FC0], np.uint16)
"""Zero, subnormal numbers, the first normal ones, about one, the largest, infinity and NaN."""


def test_vdpbf16ps_adds_odd_products_first(tmp_path: Path) -> None:
    """Subnormal numbers are zeros. Numpy's products are exact here, so its sums round as the instruction's."""
    rng = np.random.default_rng(4)
    a, b = bf16(rng, (120, 134), 99), bf16(rng, (120, 134), 99)
    a[3:9, ::3], b[5:11, 1::4] = 0x007F, 0x8001
    sums = to_f32(bf16(rng, (120, 134), 99)[:, :16], "bf16")
    sums[20:30, 5] = 1e-40
    out = np.full_like(sums, np.nan)
    emulated(dots(), PAIRS, tmp_path)(sums, out, a.view(np.uint32), b.view(np.uint32))
    x, y = (np.where(bits & 0x7F80, to_f32(bits, "bf16"), np.float32(0)) for bits in (a, b))
    start = np.where(np.abs(sums) < 2.0**-126, np.float32(0), sums)
    assert np.array_equal(out, start + x[:, 1::2] * y[:, 1::2] + x[:, ::2] * y[:, ::2])
    assert not np.array_equal(out, start + x[:, ::2] * y[:, ::2] + x[:, 1::2] * y[:, 1::2])


@pytest.mark.parametrize("exponents", [(120, 134), (0, 256), (50, 80)], ids=["near one", "all", "tiny products"])
def test_vdpbf16ps_has_the_bits_of_the_machine(exponents: tuple[int, int], tmp_path: Path) -> None:
    """To the last one, but for those of NaNs: C leaves open which NaN a sum becomes."""
    if not PAIRS.features <= detect():
        pytest.skip("this machine has no AVX512-BF16")
    rng, n = np.random.default_rng(5), 4000
    a, b = bf16(rng, exponents, n), bf16(rng, exponents, n)
    sums = rng.integers(0, 1 << 32, (n, 16), np.uint32).view(np.float32)
    sums[::2] = to_f32(bf16(rng, (0, 60), n)[::2, :16], "bf16")
    for edgy in (a, b, sums.view(np.uint16)[:, 1::2]):
        chosen = rng.random(edgy.shape) < 0.1
        edgy[chosen] = rng.choice(EDGES, chosen.sum()) | (rng.integers(0, 2, chosen.sum()) << 15).astype(np.uint16)
    executable, name = compile_for(dots(), PAIRS.tvm_target())
    real, made = np.full((2, n, 16), np.nan, np.float32)
    called(executable[name], (sums, real, a.view(np.uint32), b.view(np.uint32)))
    emulated(dots(), PAIRS, tmp_path)(sums, made, a.view(np.uint32), b.view(np.uint32))
    assert np.isfinite(real).mean() > 0.3
    same = (real.view(np.uint32) == made.view(np.uint32)) | (np.isnan(real) & np.isnan(made))
    assert same.all(), np.flatnonzero(~same)[:9]


def test_vpdpbusd(library: Any) -> None:
    rng = np.random.default_rng(3)
    sums = rng.integers(-99, 99, 16, np.int32)
    a, b = rng.integers(0, 256, 64, np.uint8), rng.integers(-128, 128, 64, np.int8)
    out = np.zeros(16, np.int32)
    library.emulated_vpdpbusd_512(at(out), at(sums), at(a), at(b))
    assert np.array_equal(out, sums + (a.astype(np.int32) * b).reshape(16, 4).sum(1))


@pytest.mark.parametrize(
    ("made", "fault"),
    [
        (config(palette=0), "palette (0)"),
        (config(rows=17), "a tile is too large (0)"),
        (config(width=68), "a tile is too large (0)"),
        (config(width=62), "a row is no multiple of four bytes (0)"),
        (config(rows=0), "a tile has only one size (0)"),
        (np.arange(64, dtype=np.uint8) == 0, "a tile that is not configured (1)"),
        (np.where(np.arange(64) == 40, 1, config()).astype(np.uint8), "a reserved byte is set (40)"),
        (config(), "threads that did not release their tiles (1)"),
    ],
)
def test_configurations_that_a_processor_refuses(made: Array, fault: str, library: Any) -> None:
    made = made.astype(np.uint8)
    library.emulated_ldtilecfg(at(made))
    if made[0] == 1 and not made[16]:
        library.emulated_tilezero(1)
    assert library.emulated_fault().decode() == fault


def test_tiles_without_a_configuration(library: Any) -> None:
    library.emulated_tilezero(3)
    assert library.emulated_fault() == b"no tiles are configured (3)"


def test_tiles_that_do_not_fit(library: Any) -> None:
    """11 rows of the weight are not 16 pairs."""
    made = config()
    made[48 + 2] = 11
    library.emulated_ldtilecfg(at(made))
    library.emulated_tdpbf16ps(0, 1, 2)
    library.emulated_tilerelease()
    assert library.emulated_fault() == b"tiles do not fit each other (64)"


def test_reading_beyond_an_array(library: Any) -> None:
    data = np.ones((ROWS, BYTES), np.uint8)
    start = data.ctypes.data
    beyond = b"a tile reaches beyond the end of an array by bytes (3)"
    for missing, fault in ((0, b""), (3, beyond)):
        library.emulated_array(0, ctypes.c_size_t(start), ctypes.c_size_t(start + data.nbytes - missing))
        library.emulated_ldtilecfg(at(config()))
        load(library, 0, data)
        library.emulated_tilerelease()
        assert library.emulated_fault() == fault
