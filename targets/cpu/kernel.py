"""How a kernel is named."""

from __future__ import annotations

from tvm.tirx import PrimFunc


def named(kernel: PrimFunc, *parts: object) -> PrimFunc:
    """The kernel under a symbol made of its op and static parameters, and opaque (8) to TVM's fusion."""
    text = "_".join(str(part) for part in parts)
    symbol = text.translate({ord("."): "p", ord("-"): "m", ord("+"): None})
    return kernel.with_attr({"global_symbol": symbol, "op_pattern": 8})
