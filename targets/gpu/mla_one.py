"""The values of one row, where each launch costs time: what joins the sections of attention multiplies as well."""

from __future__ import annotations

from functools import cache

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from deepzig.targets.emit import Expr, kernel, store, symbols, when

from .attention import Sizes
from .device import Gpu
from .emit import barrier, launch, settled, shared
from .few import resident
from .lanes import THREADS, Lanes, Memory, Weight, multiply
from .layout import pitch, stored
from .mla import few_rows, join, scratch
from .source import Source

COLUMNS = 4
"""Outputs of a thread: many, since each block joins the sections anew."""


@cache
def one_values(s: Sizes, v: int, wdtype: str, *, gpu: Gpu) -> PrimFunc:
    """Kernel for the values of each head, which does nothing unless there is one row.

    Args:
        s: the sizes of the attention.
        v: values of a head.
        wdtype: `f32`, `bf16`, `f16`, `q8`, `q4` or `fp8`.
        gpu: the device.

    Returns:
        (sums from `mla.mla_attend`, pos i32[n], W[heads, v, pitch] packed by `layout.pack_rows`, Y f32[n, heads * v]).
        Y is written.
    """
    _, cut = few_rows(gpu, s)
    lanes = Lanes(s.kv_lora, v, wdtype, columns=COLUMNS)
    with kernel("one_values", gpu.kind, *s.names, f"v{v}", wdtype) as f:
        (n,) = symbols("n")
        SUMS = f.tensor("sums", "f32", *scratch(gpu, s))
        POS = f.tensor("pos", "i32", n)
        W = f.tensor("w", stored(wdtype), s.heads, v, pitch(s.kv_lora, wdtype))
        Y = f.tensor("y", "f32", n, s.heads * v)
        with when(n == 1), launch(THREADS, lanes.blocks, s.heads, resident=resident(wdtype, 1)) as t:
            block, head = t.block
            latent = shared(1, s.latent_pitch)
            count = settled(T.Cast("int64", POS[0]) + 1)
            join(t, cut, s, SUMS, count, T.int64(0), head, lambda c, value: store(latent, value, 0, c))
            barrier()

            def write(r: Expr, output: Expr, value: Expr) -> None:
                store(Y, value, 0, head * v + output)

            weight = Weight(W, lambda output, half: (head, output))
            source = Source(latent, s.kv_lora, 0, s.kv_lora % 4 == 0)
            memory = Memory(gpu, lanes, 1, norm=False)
            multiply(t, lanes, memory, source, lambda r: r, weight, block, 1, T.int64(1), write)
    return f.function
