"""What kernels ask of a device is read from their code, and more than it has is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import tvm
from tvm.script import tirx as T

from deepzig.errors import DeepZigError
from deepzig.targets.emit import kernel, loop, store, symbols, when
from deepzig.targets.gpu import limits
from deepzig.targets.gpu.device import CUDA, METAL, WEBGPU, Gpu, GpuTarget
from deepzig.targets.gpu.emit import barrier, launch, shared
from deepzig.targets.gpu.limits import Kernel
from deepzig.targets.gpu.pipeline import compile_module

THREADS, WIDTH, ROWS = 96, 333, 41


def module() -> Any:
    """Two launches: rows reversed through shared memory, then scaled."""
    with kernel("turn") as f:
        (n,) = symbols("n")
        x, w, y = f.tensor("x", "f32", n, WIDTH), f.tensor("w", "u32", ROWS, WIDTH), f.tensor("y", "f32", n, WIDTH)
        with launch(THREADS, 5, ROWS) as t:
            row = shared(WIDTH)
            flags = shared(7, dtype="uint32")
            with loop(n) as r:
                with t.each(WIDTH) as i:
                    store(row, x[r, i], i)
                store(flags, w[t.block[1], t.block[0]], t.thread % 7)
                barrier()
                with t.each(WIDTH) as i:
                    store(y, row[WIDTH - 1 - i] * T.Cast("float32", flags[i % 7]), r, i)
        with launch(2 * THREADS, n) as t, t.each(WIDTH) as i:
            store(y, y[t.block[0], i] * T.float32(3), t.block[0], i)
    return tvm.IRModule({"turn": f.function})


WANTED = [
    Kernel(
        name="turn_kernel",
        block=THREADS,
        grid={"x": 5, "y": ROWS},
        shared=4 * (-(-WIDTH // 4) * 4 + 8),  # arrays are whole vectors
        buffers=(4 * ROWS * WIDTH, None, None),
        scalars=1,
    ),
    Kernel("turn_kernel_1", 2 * THREADS, {"x": None}, 0, (None,), 1),
]


@pytest.mark.parametrize("gpu", [CUDA, METAL], ids=lambda gpu: gpu.kind)
def test_what_kernels_ask_for(gpu: Gpu) -> None:
    lowered = limits.Lowered()
    target = GpuTarget(gpu, frozenset(), "x86_64-linux", gpu.kind)
    compile_module(module(), target.tvm_target(), [lowered])
    assert sorted(lowered.kernels, key=lambda k: k.name) == WANTED
    assert [k.bindings for k in WANTED] == [4, 2]


LESS: list[tuple[dict[str, Any], str]] = [
    ({"max_threads": 95}, "turn_kernel needs 96 threads in a block, the device has 95"),
    ({"max_threads": 191}, "turn_kernel_1 needs 192 threads in a block, the device has 191"),
    ({"shared_bytes": 1375}, "turn_kernel needs 1376 bytes of shared memory, the device has 1375"),
    ({"bindings": 3}, "turn_kernel needs 4 bindings, the device has 3"),
    ({"binding_bytes": 54611}, "turn_kernel needs 54612 bytes in a buffer, the device has 54611"),
    ({"grid": (5, 40, 1)}, "turn_kernel needs 41 blocks along y, the device has 40"),
    ({"grid": (4, 41, 1)}, "turn_kernel needs 5 blocks along x, the device has 4"),
]


@pytest.mark.parametrize(("less", "what"), LESS, ids=[what.split(" needs ")[1] for _, what in LESS])
def test_a_device_with_less(less: dict[str, Any], what: str) -> None:
    """One less of anything is too little; what is known at the call only is not looked at."""
    target = GpuTarget(replace(METAL, **less), frozenset(), "x86_64-linux", "metal")
    with pytest.raises(DeepZigError) as caught:
        target.compile(module())
    assert str(caught.value) == (
        f"the kernel {what}\n  at: lowering for metal\n  fix: report it with the config of the model"
    )


def test_a_device_with_just_enough() -> None:
    enough = {"max_threads": 192, "shared_bytes": 1376, "bindings": 4, "binding_bytes": 54612, "grid": (5, 41, 1)}
    gpu = replace(CUDA, **enough)
    for asked in WANTED:
        limits.check(asked, gpu)
    assert GpuTarget(gpu, frozenset(), "x86_64-linux", "cuda").compile(module()).mod.imports[0].kind == "cuda"


def test_dimensions_of_a_grid_beyond_the_second_are_in_it() -> None:
    """WebGPU leaves no third: TVM spreads the first over it."""
    with kernel("three") as f:
        (n,) = symbols("n")
        y = f.tensor("y", "i32", n, 5, 7)
        with launch(32, 7, 5, n) as t, when(t.thread == 0):
            store(y, T.Cast("int32", t.block[0] + 10 * t.block[1]), t.block[2], t.block[1], t.block[0])
    lowered = limits.Lowered()
    compile_module(
        tvm.IRModule({"three": f.function}),
        GpuTarget(WEBGPU, frozenset(), "x86_64-linux", "webgpu").tvm_target(),
        [lowered],
    )
    assert [k.grid for k in lowered.kernels] == [{"x": 7, "y": None}]


def test_numbers_are_no_buffers_of_webgpu() -> None:
    asked = Kernel("many", 64, {"x": None}, 0, (None,) * 8, 3)
    limits.check(asked, WEBGPU)
    with pytest.raises(DeepZigError, match="the kernel many needs 9 bindings, the device has 8"):
        limits.check(asked, replace(METAL, bindings=8))
