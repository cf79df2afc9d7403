"""Products with weight matrices, and rows and slices of weights."""

from __future__ import annotations

from deepzig.ir import Value
from deepzig.ir.quantize import QUANTIZED

from .context import Context
from .quant import quantised_expert, quantised_product


def product(c: Context, x: str, w: Value, bias: str = "", out: str | None = None) -> str:
    """x [n, k] times the transpose of a weight [m, k], plus a bias [m] if there is one."""
    if w.type.dtype in QUANTIZED:
        return quantised_product(c, x, w, bias, out)
    return c.emit.op("Gemm", x, c.use(w), *([bias] if bias else []), out=out, transB=1)


def rows_of(c: Context, table: Value, rows: str, out: str | None = None) -> str:
    """Rows of a weight, or matrices of a stack, as f32; only those are widened."""
    stored = c.stored(table)
    if table.type.dtype == "f32":
        return c.emit.op("Gather", stored, rows, axis=0, out=out)
    return c.widened(c.emit.op("Gather", stored, rows, axis=0), out)


def expert_product(c: Context, x: str, stack: Value, expert: str) -> str:
    """x [n, k] times the transpose of one matrix of a stack [e, m, k]; `expert` is a scalar."""
    read = quantised_expert if stack.type.dtype in QUANTIZED else rows_of
    return c.emit.op("Gemm", x, read(c, stack, expert), transB=1)
