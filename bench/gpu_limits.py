"""What a GPU can do at most: bytes a second of a copy, operations a second of its matrix units; by kernels of ours."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tvm
from tvm.script import tirx as T

from deepzig.targets.emit import kernel, loop, store, symbols
from deepzig.targets.gpu.device import GpuTarget
from deepzig.targets.gpu.emit import launch, variable
from deepzig.targets.gpu.units import UNITS

THREADS = 256
SUBGROUPS = THREADS // 32
COPIED = 1 << 28
"""Bytes: more than any cache holds."""

MATRICES, TURNS, BLOCKS = 8, 2048, 2048
"""Independent sums of a subgroup, products of each, and blocks of the kernel that multiplies registers."""

LEAST = 0.02
"""Seconds that are measured at once, launches behind each other."""


def copy_kernel() -> Any:
    """Kernel (x f32[n, 1024], y f32[n, 1024]): y = x, 16 bytes a thread."""
    with kernel("copy") as f:
        (n,) = symbols("n")
        x, y = f.tensor("x", "f32", n, 4 * THREADS), f.tensor("y", "f32", n, 4 * THREADS)
        with launch(THREADS, n) as t:
            place = T.ramp(t.thread * 4, 1, 4)
            store(y, x[t.block[0], place], t.block[0], place)
    return f.function


def unit_kernel(name: str) -> Any:
    """Kernel (seed f32[1], y f32[blocks, threads]) that does TURNS * MATRICES products a subgroup, in registers."""
    unit = UNITS[name]
    with kernel("unit", name) as f:
        (n,) = symbols("n")
        seed, y = f.tensor("seed", "f32", 1), f.tensor("y", "f32", n, THREADS)
        with launch(THREADS, n) as t:
            word = T.reinterpret(unit.word, seed[0])
            a, b = unit.load_a(t.lane, lambda *_: word), unit.load_b(t.lane, lambda *_: word)
            sums = unit.zero(MATRICES)
            with loop(TURNS):
                for i in range(MATRICES):
                    unit.multiply(sums, a, b, i)
            total = variable(T.float32(0))
            for i in range(int(sums.shape[0])):
                store(total, total[0] + T.Cast("float32", sums[i]), 0)
            store(y, total[0], t.block[0], t.thread)
    return f.function


def unit_operations(name: str) -> int:
    """Operations of a launch of BLOCKS blocks of `unit_kernel`."""
    unit = UNITS[name]
    return 2 * unit.rows * unit.columns * unit.words * unit.per_word * MATRICES * TURNS * SUBGROUPS * BLOCKS


def compiled(kernels: Sequence[Any], target: GpuTarget) -> Any:
    """The kernels as a module of functions."""
    module = tvm.IRModule({str(f.attrs["global_symbol"]): f for f in kernels})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernels.so"
        target.compile(module).export_library(str(path))
        return tvm.runtime.load_module(str(path))


class Limits:
    """The limits of a device, each measured when it is asked for; the fastest of so many turns."""

    def __init__(self, target: GpuTarget, index: int = 0, rounds: int = 5) -> None:
        self._place: Any = tvm.device(target.device, index)
        names = sorted({*target.gpu.units.values(), "fma"})
        self._module = compiled([copy_kernel(), *map(unit_kernel, names)], target)
        self._rounds = rounds

    def copy(self) -> float:
        """Bytes a second that are read and written, added."""
        rows = COPIED // (16 * THREADS)
        x, y = (tvm.runtime.empty((rows, 4 * THREADS), "float32", self._place) for _ in range(2))
        return 2 * COPIED / self._fastest(lambda: self._module["copy"](x, y))

    def unit(self, name: str) -> float:
        """Operations a second of a matrix unit."""
        seed, y = (tvm.runtime.empty(shape, "float32", self._place) for shape in ((1,), (BLOCKS, THREADS)))
        return unit_operations(name) / self._fastest(lambda: self._module[f"unit_{name}"](seed, y))

    def _fastest(self, run: Callable[[], object]) -> float:
        return min(seconds(run, self._place.sync) for _ in range(self._rounds))


def seconds(run: Callable[[], object], wait: Callable[[], object], least: float = LEAST) -> float:
    """Seconds of a launch, of so many behind each other that they take `least` seconds together."""
    run()
    wait()
    count = 1
    while True:
        begin = time.perf_counter()
        for _ in range(count):
            run()
        wait()
        taken = time.perf_counter() - begin
        if taken >= least or count >= 1 << 16:
            return taken / count
        count = min(max(2 * count, int(1.2 * count * least / max(taken, 1e-9))), 1 << 16)
