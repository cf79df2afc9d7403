"""Launches that are recorded once and replayed as one: what an observer of kernel calls would not see."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import tvm_ffi

REPLAY = "vm.builtin.cuda_graph.run_or_capture"
"""The function of TVM's runtime that does it: (machine, function, arguments, what identifies the record)."""


@contextmanager
def watchable(watched: Callable[[], bool]) -> Iterator[None]:
    """A virtual machine that is loaded in this context launches one kernel after the other while it is `watched`."""
    replay = tvm_ffi.get_global_func(REPLAY, allow_missing=True)
    if replay is None:
        yield
        return
    invoke = tvm_ffi.get_global_func("vm.builtin.invoke_closure")

    def run(machine: Any, function: Any, arguments: Any, *key: Any) -> Any:
        return invoke(machine, function, *arguments) if watched() else replay(machine, function, arguments, *key)

    tvm_ffi.register_global_func(REPLAY, run, override=True)
    try:
        yield
    finally:
        tvm_ffi.register_global_func(REPLAY, replay, override=True)
