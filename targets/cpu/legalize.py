"""Kernels for machines that lack what they are written with: passes over TIR, to be run before all others."""

from __future__ import annotations

from typing import Any

import tvm_ffi
from tvm import ir, tirx
from tvm.script import tirx as T

PURE = "tirx.call_llvm_pure_intrin"
THREADS = ("pragma_parallel_launch_point", "pragma_parallel_barrier_when_finish")
"""What statements are marked with that concern threads."""


def separate_multiply_adds() -> Any:
    """The pass that makes a product and a sum, with two roundings, of every fused multiply-add.

    Without an instruction for it, it would be a call to a library for each element of a vector.
    """
    fma = int(T.call_llvm_pure_intrin("float32", "llvm.fma", *map(T.float32, (0, 0, 0))).args[0])

    def separate(call: Any) -> Any:
        if call.op.name != PURE or int(call.args[0]) != fma:
            return call
        a, b, c = call.args[1:]
        return a * b + c

    return _each_function("separate_multiply_adds", (ir.Call, separate))


def on_one_thread() -> Any:
    """The pass that makes plain loops of those that threads share."""

    def serial(loop: Any) -> Any:
        if loop.kind != tirx.ForKind.PARALLEL:
            return loop
        return tirx.For(loop.loop_var, loop.min, loop.extent, tirx.ForKind.SERIAL, loop.body)

    def body(statement: Any) -> Any:
        return statement.body if statement.attr_key in THREADS else statement

    return _each_function("on_one_thread", (tirx.For, serial), (tirx.AttrStmt, body))


def _each_function(name: str, *changes: Any) -> Any:
    def apply(function: Any, _module: Any, _context: Any) -> Any:
        return function.with_body(tvm_ffi.structural_map(function.body, changes))

    return tirx.transform.prim_func_pass(apply, opt_level=0, name=name)
