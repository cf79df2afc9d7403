"""Shaders: their device functions, how they are shortened, and what their host does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tvm
from tvm.script import tirx as T

from deepzig.errors import DeepZigError
from deepzig.targets.emit import kernel, loop, store, symbols, when
from deepzig.targets.gpu.device import WEBGPU, GpuTarget
from deepzig.targets.gpu.emit import barrier, device, launch, shared, shuffle_xor, uniform
from deepzig.targets.gpu.webgpu import WebGpuCode, compile_functions

from .conftest import VulkanGpu
from .vulkan import launches

TARGET = GpuTarget(WEBGPU, frozenset(), "x86_64-linux", "webgpu")
COUNT = 4096


def compiled(kernel_: Any) -> WebGpuCode:
    return compile_functions(tvm.IRModule({str(kernel_.attrs["global_symbol"]): kernel_}), TARGET)


def each(name: str, inputs: tuple[str, ...], output: str) -> Any:
    """The device function of each element."""
    types = {"f32": "float32", "i32": "int32", "u32": "uint32"}
    with kernel("each", name) as f:
        tensors = [f.tensor(f"x{i}", dtype, COUNT) for i, dtype in enumerate(inputs)]
        y = f.tensor("y", output, COUNT)
        with launch(64, COUNT // 64) as t:
            i = T.bind(t.block[0] * 64 + t.thread)
            store(y, device(name, *(x[i] for x in tensors), returns=types[output]), i)
    return f.function


def made(name: str, arrays: list[Any], output: str) -> Any:
    names = {"float32": "f32", "int32": "i32", "uint32": "u32"}
    y = np.zeros(COUNT, {"f32": np.float32, "i32": np.int32, "u32": np.uint32}[output])
    VulkanGpu()(each(name, tuple(names[str(a.dtype)] for a in arrays), output))(*arrays, y)
    return y


def test_division_is_rounded_correctly() -> None:
    rng = np.random.default_rng(1)
    a, b = ((rng.standard_normal(COUNT) * 2.0 ** rng.integers(-60, 60, COUNT)).astype(np.float32) for _ in range(2))
    a[:64], b[:64] = np.arange(1, 65), np.float32(3)
    assert np.array_equal(made("divide", [a, b], "f32"), a / b)


def test_angles_may_be_large() -> None:
    rng = np.random.default_rng(2)
    x = (rng.standard_normal(COUNT) * 2.0 ** rng.integers(-12, 22, COUNT)).astype(np.float32)
    for name, function in (("sin", np.sin), ("cos", np.cos)):
        assert np.abs(made(name, [x], "f32") - function(x.astype(np.float64))).max() <= 1.2e-7


def test_words() -> None:
    rng = np.random.default_rng(3)
    a, b = (rng.integers(0, 2**32, COUNT, np.uint32) for _ in range(2))
    assert np.array_equal(made("multiply_high", [a, b], "u32"), (a.astype(np.uint64) * b >> 32).astype(np.uint32))
    x, y, c = (v.view(np.int32) for v in (a, b, a[::-1].copy()))
    dots = (x.view(np.int8).astype(np.int32) * y.view(np.int8)).reshape(-1, 4).sum(-1, dtype=np.int32)
    assert np.array_equal(made("dot4", [x, y, c], "i32"), dots + c)


def test_halves_are_widened_exactly_and_floats_are_rounded_to_even() -> None:
    bits = np.random.default_rng(4).integers(0, 2**16, COUNT).astype(np.uint16)
    bits[:4] = 0, 1, 0x7C00, 0xFC00
    bits[np.isnan(bits.view(np.float16))] = 0x3FF
    got = made("half", [bits.astype(np.uint32)], "f32")
    assert np.array_equal(got, bits.view(np.float16).astype(np.float32))
    x = np.arange(COUNT, dtype=np.float32) / 2 - 700
    assert np.array_equal(made("round", [x], "i32"), np.rint(x).astype(np.int32))


def hosted() -> Any:
    """Two launches, one of them in a loop and under a condition, which exchange and agree."""
    with kernel("hosted") as f:
        n, m = symbols("n m")
        x, y = f.tensor("x", "f32", n, 64), f.tensor("y", "f32", n, m)
        with launch(64, n) as t:
            held = shared(64)
            store(held, shuffle_xor(x[t.block[0], t.thread], 5), t.thread)
            barrier()
            last = uniform(T.Cast("int32", held[63]))
            with when(last > 3):
                barrier()
                store(y, held[0], t.block[0], 0)
        with loop((m + 3) // 4) as i, when(n * m > 20), launch(32, T.min(n, i + 2), m % 5) as t:
            store(y, T.float32(1), t.block[0], t.block[1])
    return f.function


def test_what_a_host_does() -> None:
    code = compiled(hosted())
    program = code.programs["hosted"]
    assert program.sizes == {"n": (0, 0), "m": (1, 1)}
    first, *others = launches(program, [(9, 64), (9, 8)])
    assert first == ("hosted_kernel", [0, 1], [8, 9], (9, 1))
    assert [(name, grid) for name, _, _, grid in others] == [("hosted_kernel_1", (2, 3)), ("hosted_kernel_1", (3, 3))]
    assert len(list(launches(program, [(2, 64), (2, 8)]))) == 1
    assert launches(program, [(0, 64), (0, 8)]) == []


def test_a_shader_has_the_device_functions_that_it_calls() -> None:
    shader = compiled(hosted()).shaders["hosted_kernel"]
    assert shader.text.count("fn ") == 3 and shader.text.count("fn main(") == 1  # beside it shuffle_xor and uniform
    assert shader.text.count("workgroupUniformLoad(") == 1
    assert shader.shared == 4 * (64 + 64 + 1) and shader.written == (False, True)
    assert "//" not in shader.text and "  " not in shader.text


def test_shared_memory_of_device_functions_counts() -> None:
    """Of 16 KiB the kernel's own array takes all but 8 bytes."""
    with kernel("full") as f:
        x = f.tensor("x", "i32", 64)
        with launch(64, 1) as t:
            held = shared(4092)
            store(held, T.float32(0), t.thread)
            barrier()
            store(x, shuffle_xor(T.Cast("int32", held[63 - t.thread]), 1), t.thread)
    with pytest.raises(
        DeepZigError, match=r"^the kernel full_kernel needs 16624 bytes of shared memory, the device has"
    ):
        compiled(f.function)
