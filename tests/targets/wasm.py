"""Runs one kernel for WebAssembly under wasmtime."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import wasmtime

from deepzig.artifacts.machines import WASM, Machine
from deepzig.compiler.link import link
from deepzig.targets.cpu.features import CpuTarget

from .conftest import Array, Run

MACHINE = Machine(WASM, frozenset({"bulk-memory", "simd128"}))
TARGET = CpuTarget(MACHINE.features, WASM, "wasm")
CODES = {"i": 0, "u": 1, "f": 2}
"""Kind of a numpy type -> type code of DLPack."""

LINE, PAGE = 64, 1 << 16
TENSOR_POINTER = 7
"""The type of an argument that is a DLTensor (tvm/ffi/c_api.h)."""


def in_wasm(kernel: Any, folder: Path) -> Run:
    """Compile a kernel to a module without imports, and instantiate it."""
    import tvm

    name = str(kernel.attrs["global_symbol"])
    made = folder / f"{name}.wasm"

    def linked(output: str, objects: Any, options: Any = None, **_: Any) -> None:
        link([objects] if isinstance(objects, str) else list(objects), output, WASM, native=False)

    linked.object_format = "o"  # type: ignore[attr-defined]
    module = tvm.IRModule({name: kernel}).with_attr("system_lib_prefix", "")
    TARGET.compile(module).export_library(str(made), fcompile=linked, workspace_dir=str(folder))
    store = wasmtime.Store()
    code = wasmtime.Module.from_file(store.engine, str(made))
    assert not code.imports
    exports = wasmtime.Instance(store, code, []).exports(store)
    memory, function, workspace = (exports[n] for n in ("memory", f"__tvm_ffi_{name}", "workspace"))
    begin = memory.data_len(store)

    def run(*arrays: Array) -> None:
        """Arrays, their DLTensors and the arguments lie behind what the module has; workspaces follow."""
        heads = [begin + LINE * i for i in range(2 * len(arrays))]
        arguments = begin + LINE * len(heads)
        place = arguments + -(-16 * len(arrays) // LINE) * LINE
        places = []
        for array in arrays:
            places.append(place)
            place += -(-array.nbytes // LINE) * LINE + LINE
        missing = place - memory.data_len(store)
        if missing > 0:
            memory.grow(store, -(-missing // PAGE))
        for i, (array, at) in enumerate(zip(arrays, places, strict=True)):
            head, shape = heads[2 * i], heads[2 * i + 1]
            code, bits = CODES[array.dtype.kind], 8 * array.itemsize
            memory.write(store, struct.pack("<IiiiBBHIIQ", at, 1, 0, array.ndim, code, bits, 1, shape, 0, 0), head)
            memory.write(store, struct.pack(f"<{array.ndim}q", *array.shape), shape)
            memory.write(store, struct.pack("<iiQ", TENSOR_POINTER, 0, head), arguments + 16 * i)
            memory.write(store, array.tobytes(), at)
        workspace(store, place)
        assert function(store, 0, arguments, len(arrays), 0) == 0
        for array, at in zip(arrays, places, strict=True):
            array[...] = np.frombuffer(memory.read(store, at, at + array.nbytes), array.dtype).reshape(array.shape)

    return run
