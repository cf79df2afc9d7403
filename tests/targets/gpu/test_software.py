"""The software GPUs run kernels as a GPU does, and find what a GPU would not tell."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from tvm.script import tirx as T
from tvm.script.ir_builder import tirx as builder

from deepzig.targets.emit import either, kernel, loop, store, symbols, when
from deepzig.targets.gpu.emit import barrier, device, launch, registers, shared, shuffle_xor

from .conftest import SoftwareGpu
from .software import library

Gpu = Callable[[str], SoftwareGpu]
DEVICES = pytest.mark.parametrize("device_kind", ["cuda", "metal"])


def simple(name: str, threads: int, body: Callable[[Any, Any], None], dtype: str = "f32") -> Any:
    """A kernel of one block with one output y[n], n the number of its threads."""
    with kernel(name) as f:
        (n,) = symbols("n")
        y = f.tensor("y", dtype, n)
        with launch(threads, 1) as t:
            body(t, y)
    return f.function


def ring(rounds: int, threads: int) -> Any:
    """y = x, moved by one place `rounds` times through shared memory."""
    with kernel("ring", rounds) as f:
        (n,) = symbols("n")
        x, y = f.tensor("x", "f32", n, threads), f.tensor("y", "f32", n, threads)
        with launch(threads, n) as t:
            places, held = shared(threads), registers(1)
            store(held, x[t.block[0], t.thread], 0)
            with loop(rounds):
                store(places, held[0], t.thread)
                barrier()
                store(held, places[(t.thread + 1) % threads], 0)
                barrier()
            store(y, held[0], t.block[0], t.thread)
    return f.function


@DEVICES
@pytest.mark.parametrize("threads", [32, 96, 77, 1024])
def test_barriers(gpu: Gpu, device_kind: str, threads: int) -> None:
    x = np.random.default_rng(1).standard_normal((5, threads), np.float32)
    y = np.empty_like(x)
    gpu(device_kind)(ring(3, threads))(x, y)
    assert np.array_equal(y, np.roll(x, -3, axis=1))


@DEVICES
def test_many_blocks(gpu: Gpu, device_kind: str) -> None:
    """Enough of them for two threads of the system."""
    x = np.random.default_rng(1).standard_normal((700, 256), np.float32)
    y = np.empty_like(x)
    gpu(device_kind)(ring(9, 256))(x, y)
    assert np.array_equal(y, np.roll(x, -9, axis=1))


@DEVICES
def test_indices_in_three_dimensions(gpu: Gpu, device_kind: str) -> None:
    sizes = (3, 5, 7, 64)
    with kernel("indices") as f:
        y = f.tensor("y", "i32", *sizes)
        with launch(64, *sizes[:3]) as t:
            place = ((t.block[0] * 10 + t.block[1]) * 10 + t.block[2]) * 100 + t.thread
            store(y, T.Cast("int32", place), *t.block, t.thread)
    y = np.zeros(sizes, np.int32)
    gpu(device_kind)(f.function)(y)
    i, j, k, thread = np.indices(sizes)
    assert np.array_equal(y, ((i * 10 + j) * 10 + k) * 100 + thread)


@DEVICES
@pytest.mark.parametrize("dtype", ["f32", "i32"])
def test_scalars(gpu: Gpu, device_kind: str, dtype: str) -> None:
    """Numbers of all kinds, and symbolic sizes, reach the kernel."""
    kind = {"f32": "float32", "i32": "int32"}[dtype]
    with kernel("scalars", dtype) as f:
        (n,) = symbols("n")
        y = f.tensor("y", dtype, n)
        a, b = builder.arg("a", T.Var("a", kind)), builder.arg("b", T.Var("b", "int64"))
        with launch(32, 1) as t, when(t.thread < n):
            store(y, a * T.Cast(kind, n) + T.Cast(kind, b), t.thread)
    y = np.zeros(7, {"f32": np.float32, "i32": np.int32}[dtype])
    gpu(device_kind)(f.function)(y, -3, 1000)
    assert (y == -3 * 7 + 1000).all()


HALVES: dict[str, Callable[[Any, Any], Any]] = {
    "sum": lambda a, b: a + b,
    "difference": lambda a, b: a - b,
    "product": lambda a, b: a * b,
    "quotient": lambda a, b: a / b,
}


@DEVICES
@pytest.mark.parametrize("name", HALVES)
def test_f16_rounds_each_operation(gpu: Gpu, device_kind: str, name: str) -> None:
    with kernel("f16", name) as f:
        (n,) = symbols("n")
        a, b, y = f.tensor("a", "f32", n), f.tensor("b", "f32", n), f.tensor("y", "f32", n)
        with launch(64, n) as t, when(t.thread == 0):
            i = t.block[0]
            x = HALVES[name](T.Cast("float16", a[i]), T.Cast("float16", b[i]))
            store(y, T.Cast("float32", HALVES[name](x, T.Cast("float16", b[i]))), i)
    rng = np.random.default_rng(6)
    scale = np.exp2(rng.integers(-26, 17, (2, 4000))).astype(np.float32)  # subnormal numbers and overflow as well
    p, q = rng.standard_normal((2, 4000), np.float32) * scale
    y = np.empty_like(p)
    gpu(device_kind)(f.function)(p, q, y)
    with np.errstate(all="ignore"):
        half_p, half_q = p.astype(np.float16), q.astype(np.float16)
        expected = HALVES[name](HALVES[name](half_p, half_q), half_q).astype(np.float32)
    assert np.array_equal(y, expected, equal_nan=True)


@DEVICES
def test_memory_that_nobody_wrote_is_no_number(gpu: Gpu, device_kind: str) -> None:
    def body(t: Any, y: Any) -> None:
        scratch = shared(64)
        with when(t.thread != 5):
            store(scratch, T.float32(2), t.thread)
        barrier()
        with when(t.thread != 9):
            store(y, scratch[t.thread], t.thread)

    run = gpu(device_kind)
    y = tvm.runtime.empty((64,), "float32", tvm.device(device_kind))
    assert np.isnan(y.numpy()).all()
    numbers = np.ones(64, np.float32)
    run(simple("unwritten", 64, body))(numbers)
    assert np.flatnonzero(np.isnan(numbers)).tolist() == [5] and numbers[9] == 1


@DEVICES
@pytest.mark.parametrize(("place", "told"), [(64, "past the end"), (66, "past the end"), (-1, "before the begin")])
def test_writes_outside_of_an_array(gpu: Gpu, device_kind: str, place: int, told: str) -> None:
    run = gpu(device_kind)(simple("outside", 32, lambda t, y: store(y, T.float32(1), place)))
    with pytest.raises(AssertionError, match=f"something wrote {told} of an allocation of 256 bytes"):
        run(np.ones(64, np.float32))
    run(np.ones(128, np.float32)) if place > 0 else None


RUNTIME_ONLY = """
import ctypes, sys
import numpy as np
import tvm_ffi

runtime, shim, code, device = sys.argv[1:]
ctypes.CDLL(runtime, ctypes.RTLD_GLOBAL)
ctypes.CDLL(shim)
allocate = tvm_ffi.get_global_func("runtime.TVMTensorAllocWithScope")
y = allocate(tvm_ffi.Shape((64,)), tvm_ffi.dtype("float32"), tvm_ffi.device(device, 0), None)
tvm_ffi.load_module(code)["outside"](y)
numbers = np.empty(64, np.float32)
tvm_ffi.get_global_func("runtime.TVMTensorCopyToBytes")(y, ctypes.c_void_p(numbers.ctypes.data), numbers.nbytes)
print(*numbers[:40], flush=True)  # it will be ended by SIGABRT
assert "tvm" not in sys.modules
del y
"""


@DEVICES
def test_a_process_with_the_runtime_alone(gpu: Gpu, device_kind: str, tmp_path: Path) -> None:
    """It runs kernels, and ends when an array is freed that something wrote past the end of."""

    def body(t: Any, y: Any) -> None:
        store(y, T.Cast("float32", t.thread + 1), t.thread)
        store(y, T.float32(1), 70)

    gpu(device_kind)(simple("outside", 32, body))
    runtime = Path(tvm.__file__).parent / "lib" / "libtvm_runtime.so"
    command = [sys.executable, "-P", "-c", RUNTIME_ONLY, runtime, library(), *tmp_path.glob("*.so"), device_kind]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.stdout.split() == [*(f"{i}.0" for i in range(1, 33)), *["nan"] * 8]
    assert done.returncode == -signal.SIGABRT
    assert "software GPU: something wrote past the end of an allocation of 256 bytes, at 24 bytes" in done.stderr


def past_shared(t: Any, y: Any) -> None:
    scratch = shared(32)
    store(scratch, T.float32(1), t.thread + 1)
    barrier()
    store(y, scratch[t.thread], t.thread)


def past_shared_by_address(t: Any, y: Any) -> None:
    scratch = shared(32)
    with when(t.thread == 3):
        device("cp_async_16", T.address_of(scratch[32]), T.address_of(y[0]))
        device("cp_async_commit")
        device("cp_async_wait", T.int32(0))
    barrier()
    store(y, T.float32(1), t.thread)


def past_registers(t: Any, y: Any) -> None:
    held = registers(4)
    store(held, T.float32(1), t.thread // 5)
    store(y, held[0], t.thread)


def misaligned(t: Any, y: Any) -> None:
    with when(t.thread == 7):
        builder.buffer_store(y, T.Broadcast(T.float32(1), 4), [T.ramp(t.thread * 2 + 1, T.int64(1), 4)])


FAULTS = {
    past_shared: r"thread \(31, 0, 0\) uses index 32 of an array 'float \[32\]', line \d+",
    past_shared_by_address: "wrote past the end of its shared memory",
    past_registers: r"thread \(20, 0, 0\) uses index 4 of an array 'float \[4\]', line \d+",
    misaligned: r"thread \(7, 0, 0\) reads or writes a .* that is not aligned to 16 bytes, line \d+",
}


@DEVICES
@pytest.mark.parametrize("body", FAULTS)
def test_faults(gpu: Gpu, device_kind: str, body: Callable[[Any, Any], None]) -> None:
    with pytest.raises(RuntimeError, match=rf"kernel fault_kernel, block \(0, 0, 0\): {FAULTS[body]}"):
        gpu(device_kind)(simple("fault", 32, body))(np.ones(32, np.float32))


def neighbours(t: Any, y: Any) -> None:
    scratch = shared(64)
    store(scratch, T.Cast("float32", t.thread), t.thread)
    store(y, T.if_then_else(t.thread > 0, scratch[t.thread - 1], T.float32(0)), t.thread)


def used_again(t: Any, y: Any) -> None:
    scratch = shared(64)
    store(scratch, T.Cast("float32", t.thread), t.thread)
    barrier()
    store(y, scratch[(t.thread + 1) % 64], t.thread)
    store(scratch, T.float32(0), t.thread)


def another_subgroup(t: Any, y: Any) -> None:
    with when(t.thread == 63):
        store(y, T.float32(5), 0)
    with when(t.thread == 0):
        store(y, y[0] * T.float32(3), 1)


@DEVICES
@pytest.mark.parametrize("body", [neighbours, used_again, another_subgroup])
def test_missing_barriers(gpu: Gpu, device_kind: str, body: Callable[[Any, Any], None]) -> None:
    message = "array 0 of the arguments depends on the order in which threads run: a barrier is missing"
    with pytest.raises(AssertionError, match=message):
        gpu(device_kind)(simple("missing", 64, body))(np.ones(64, np.float32))


@DEVICES
def test_blocks_have_no_order(gpu: Gpu, device_kind: str) -> None:
    with kernel("blocks") as f:
        y = f.tensor("y", "f32", 9)
        with launch(32, 8) as t, when(t.thread == 0):
            store(y, y[t.block[0]] + T.float32(1), t.block[0] + 1)
    with pytest.raises(AssertionError, match="array 0 of the arguments depends on the order"):
        gpu(device_kind)(f.function)(np.ones(9, np.float32))


@DEVICES
@pytest.mark.parametrize("pending", [0, 1, 2])
def test_copies_in_the_background(gpu: Gpu, device_kind: str, pending: int) -> None:
    """They are made when the thread waits for them, and not before."""
    with kernel("copies", pending) as f:
        x, y = f.tensor("x", "f32", 2, 128), f.tensor("y", "f32", 2, 128)
        with launch(32, 1) as t:
            stages = shared(2, 128)
            for stage in range(2):
                device("cp_async_16", *(T.address_of(b[stage, t.thread * 4]) for b in (stages, x)))
                device("cp_async_commit")
            device("cp_async_wait", T.int32(pending))
            barrier()
            for stage in range(2):
                for i in range(4):
                    store(y, stages[stage, (t.thread * 4 + i + 4) % 128], stage, t.thread * 4 + i)
    x = np.random.default_rng(8).standard_normal((2, 128), np.float32)
    y = np.empty_like(x)
    gpu(device_kind)(f.function)(x, y)
    made = 2 - pending
    assert np.array_equal(y[:made], np.roll(x[:made], -4, axis=1)) and np.isnan(y[made:]).all()


def some(t: Any, y: Any) -> None:
    with when(t.thread < 40):
        barrier()


def a_subgroup(t: Any, y: Any) -> None:
    with when(t.thread < 32):
        barrier()


def two_sites(t: Any, y: Any) -> None:
    with either(t.thread < 32) as (first, second):
        with first:
            store(y, T.float32(1), t.thread)
            barrier()
        with second:
            store(y, T.float32(2), t.thread)
            barrier()


def lanes(t: Any, y: Any) -> None:
    with when(t.thread % 2 == 0):
        store(y, shuffle_xor(y[t.thread], 2), t.thread)


DIVERGENT = {
    "some": (some, r"thread \(32, 0, 0\) waits at the barrier of line \d+, thread \(40, 0, 0\) has returned"),
    "a_subgroup": (
        a_subgroup,
        r"thread \(0, 0, 0\) waits at the barrier of line \d+, thread \(63, 0, 0\) has returned",
    ),
    "two_sites": (
        two_sites,
        r"thread \(0, 0, 0\) waits at the barrier of line \d+, thread \(63, 0, 0\) waits at the barrier of line \d+",
    ),
    "lanes": (lanes, r"thread \(0, 0, 0\) waits for its subgroup in line \d+, thread \(1, 0, 0\) has returned"),
}


@DEVICES
@pytest.mark.parametrize("name", DIVERGENT)
def test_divergence_is_an_error(gpu: Gpu, device_kind: str, name: str) -> None:
    body, told = DIVERGENT[name]
    run = gpu(device_kind)
    y = np.ones(64, np.float32)
    with pytest.raises(RuntimeError, match=rf"kernel {name}_kernel, block \(0, 0, 0\): divergence: {told}"):
        run(simple(name, 64, body))(y)
    run(simple("after", 64, lambda t, y: (barrier(), store(y, T.float32(3), t.thread))[0]))(y)
    assert (y == 3).all()


@DEVICES
def test_too_much_shared_memory(gpu: Gpu, device_kind: str) -> None:
    size = {"cuda": 48 << 10, "metal": 32 << 10}[device_kind]

    def body(t: Any, y: Any) -> None:
        scratch = shared(size // 4 + 16)
        store(scratch, T.float32(1), t.thread)
        barrier()
        store(y, scratch[size // 4], t.thread)

    message = f"kernel large_kernel has {size + 64} bytes of shared memory, of {size}"
    with pytest.raises(RuntimeError, match=message):
        gpu(device_kind)(simple("large", 32, body))(np.ones(32, np.float32))


@DEVICES
def test_too_many_threads(gpu: Gpu, device_kind: str) -> None:
    with pytest.raises(RuntimeError, match="kernel many_kernel wants 1056 threads"):
        gpu(device_kind)(simple("many", 1056, lambda t, y: store(y, T.float32(1), t.thread)))(np.ones(1056, np.float32))
