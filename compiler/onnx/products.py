"""Products with weight matrices, and rows and slices of weights."""

from __future__ import annotations

from deepzig.ir import Value

from .context import Context


def product(c: Context, x: str, w: Value, bias: str = "", out: str | None = None) -> str:
    """x [n, k] times the transpose of a weight [m, k], plus a bias [m] if there is one."""
    return c.emit.op("Gemm", x, c.use(w), *([bias] if bias else []), out=out, transB=1)


def rows_of(c: Context, table: Value, rows: str, out: str | None = None) -> str:
    """Rows of a weight, as f32; only those are widened."""
    return _first_dimension(c, table, rows, out)


def expert_product(c: Context, x: str, stack: Value, expert: str, out: str | None = None) -> str:
    """x [n, k] times the transpose of one matrix of a stack [e, m, k]; `expert` is a scalar."""
    return c.emit.op("Gemm", x, _first_dimension(c, stack, expert), out=out, transB=1)


def _first_dimension(c: Context, weight: Value, index: str, out: str | None = None) -> str:
    stored = c.store(weight)
    if weight.type.dtype == "f32":
        return c.emit.op("Gather", stored, index, axis=0, out=out)
    return c.widened(c.emit.op("Gather", stored, index, axis=0), out)
