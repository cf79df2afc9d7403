"""The compiler: trace, passes, lowering, build, ONNX export, and the command `deepzig-compile`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .onnx import export_onnx

__all__ = ["export_onnx"]


def __getattr__(name: str) -> Any:
    """`export_onnx`, imported when it is asked for, since only it needs the package onnx."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .onnx import export_onnx

    return export_onnx
