"""How a kernel is named."""

from __future__ import annotations

from typing import Any


def named(kernel: Any, *parts: object) -> Any:
    """The PrimFunc under a symbol made of its op and static parameters, and opaque (8) to TVM's fusion."""
    text = "_".join(str(part) for part in parts)
    symbol = text.translate({ord("."): "p", ord("-"): "m", ord("+"): None})
    return kernel.with_attr({"global_symbol": symbol, "op_pattern": 8})
