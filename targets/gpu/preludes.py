"""The source text of kernels as TVM writes it, with our device functions before it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import tvm_ffi

PRELUDES = {"cuda": "cuda.cuh", "metal": "metal.h", "webgpu": "webgpu.wgsl"}
"""Kind of a device -> the file with our device functions."""

AS_TEXT = "TVM_COMPILE_FORCE_FALLBACK"
"""With this variable TVM stores source text, and asks no driver for anything."""


def prelude(kind: str) -> str:
    """Our device functions for a kind of devices."""
    return (Path(__file__).parent / "prelude" / PRELUDES[kind]).read_text(encoding="utf-8")


@contextmanager
def device_functions() -> Iterator[None]:
    """While this lasts, all device code that TVM compiles is text that begins with our device functions."""
    hooks: Mapping[str, Callable[[str, Any], Any]] = {
        "tvm_callback_cuda_postproc": lambda code, target: prelude("cuda") + code,  # for all kernels of a module
        "tvm_callback_metal_compile": lambda code, target: (prelude("metal") + code, "metal"),  # for each kernel
    }
    with ExitStack() as stack:
        for name, hook in hooks.items():
            stack.enter_context(_hooked(name, hook))
        stack.enter_context(_variable(AS_TEXT, "1"))
        yield


@contextmanager
def _hooked(name: str, hook: Callable[[str, Any], Any]) -> Iterator[None]:
    before = tvm_ffi.get_global_func(name, allow_missing=True)
    tvm_ffi.register_global_func(name, hook, override=True)
    try:
        yield
    finally:
        if before is None:
            tvm_ffi.registry.remove_global_func(name)
        else:
            tvm_ffi.register_global_func(name, before, override=True)


@contextmanager
def _variable(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
