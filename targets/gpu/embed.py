"""The device code that a library carries: taken out of what TVM compiled, and other code put in.

TVM compiles CUDA itself where it finds a driver, for the GPU that is there; elsewhere it stores source text, which is
compiled when it is loaded, with a compiler. Here it always stores text, and the text is replaced by machine code: so
what is built depends neither on a driver nor on the system that compiles.

Numbers are little-endian, text is its length in 8 bytes and the bytes (TVM 0.27: `ModuleSerializer` in
src/target/codegen.cc, `CUDAModuleNode` in src/backend/cuda/runtime/cuda_module.cc, FunctionInfo in
src/runtime/metadata.h):

    library   8 bytes: the size of the rest | 2 lists of numbers of 8 bytes: the tree of modules | modules
    module    text: its kind | unless that is `_lib`, the host's code, text: the data
    data      of a device: text: the format | list of functions | for CUDA text: the code; for Metal a list of pairs
              of texts: function and source
    function  texts: its name, twice | lists: arguments, of 4 bytes: code, bits, 2 bytes lanes; tags, texts: what is
              passed for the launch; numbers of 4 bytes
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tvm_ffi

HOST = "_lib"
FATBIN = "fatbin"
"""The format of machine code; any but `cuda`, which is source text."""


@dataclass(frozen=True)
class Function:
    """A device function that the host launches.

    Attributes:
        name: its name.
        arguments: buffers are of type `handle`, others of a type such as `int32`.
    """

    name: str
    arguments: tuple[str, ...]


@dataclass(frozen=True)
class DeviceCode:
    """The code of a device in a library.

    Attributes:
        kind: of the device, as TVM calls it.
        format: what the code is: text in the language of the kind, or something else.
        functions: what can be launched.
        code: all that follows in the data: of CUDA one text, of Metal a list of pairs.
    """

    kind: str
    format: str
    functions: tuple[Function, ...]
    code: bytes


@dataclass(frozen=True)
class Executable:
    """What TVM compiled, with other code for the device.

    Attributes:
        compiled: TVM's executable.
        library: what is embedded in a library in place of TVM's device code.
    """

    compiled: Any
    library: bytes

    def export_library(self, out: str, fcompile: Any, workspace_dir: str) -> None:
        """Link the library `out`, as TVM's executables do."""
        host = next(m for m in self.compiled.mod._collect_dso_modules() if m.kind == "llvm")
        target = host["_get_target_string"]()

        def pack(module: Any, is_system_library: bool, prefix: str, folder: str) -> str:
            path = str(Path(folder) / f"device.{fcompile.object_format}")
            make = tvm_ffi.get_global_func("codegen.codegen_blob")
            make(self.library, is_system_library, target, prefix).write_to_file(path)
            return path

        self.compiled.export_library(out, fcompile=fcompile, fpack_imports=pack, workspace_dir=workspace_dir)


def library_bytes(executable: Any) -> bytes:
    """What TVM would embed in a library of the executable."""
    return tvm_ffi.get_global_func("runtime.ModulePackImportsToTensor")(executable.mod).numpy().tobytes()


def device_codes(library: bytes) -> list[DeviceCode]:
    """The device code in what is embedded, for each device."""
    _, modules = _modules(library)
    return [_device_code(kind, data) for kind, data in modules if kind in READERS]


def sources(code: DeviceCode) -> dict[str, str]:
    """The source text of each function, of code for Metal."""
    reader = _Reader(code.code)
    return dict(reader.items(lambda: (reader.text().decode(), reader.text().decode())))


def replace_text(library: bytes, kind: str, compile_text: Callable[[str], bytes]) -> bytes:
    """What is embedded, with source texts of a kind compiled.

    Args:
        library: what is embedded.
        kind: of the device; its code is one text.
        compile_text: from source text to machine code.

    Raises:
        ValueError: there is no source text of that kind.
    """
    tree, modules = _modules(library)
    if [code.format for code in device_codes(library) if code.kind == kind] != [kind]:
        raise ValueError(f"there is no text for {kind}")
    parts = [tree]
    for name, data in modules:
        if name == kind:
            found = _device_code(name, data)
            source = _Reader(found.code).text()
            table = data[8 + len(found.format.encode()) : len(data) - len(found.code)]
            data = _text(FATBIN.encode()) + table + _text(compile_text(source.decode()))
        parts += [_text(name.encode())] + ([] if name == HOST else [_text(data)])
    rest = b"".join(parts)
    return _number(len(rest)) + rest


def _modules(library: bytes) -> tuple[bytes, Sequence[tuple[str, bytes]]]:
    """The tree of modules as it is stored, and of each its kind and its data."""
    reader = _Reader(library)
    reader.number()
    begin = reader.at
    rows = reader.items(lambda: reader.number())
    reader.items(lambda: reader.number())
    tree = library[begin : reader.at]
    modules = []
    for _ in rows[1:]:
        kind = reader.text().decode()
        modules.append((kind, b"" if kind == HOST else reader.text()))
    return tree, modules


def _device_code(kind: str, data: bytes) -> DeviceCode:
    reader = _Reader(data)
    form = reader.text().decode()
    functions = tuple(reader.items(reader.function))
    return DeviceCode(kind, form, functions, data[reader.at :])


READERS = ("cuda", "metal")
"""Kinds of devices whose data is as above."""


@dataclass
class _Reader:
    data: bytes
    at: int = 0

    def take(self, size: int) -> bytes:
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, size: int = 8) -> int:
        return int.from_bytes(self.take(size), "little")

    def text(self) -> bytes:
        return self.take(self.number())

    def items(self, read: Callable[[], Any]) -> list[Any]:
        return [read() for _ in range(self.number())]

    def function(self) -> Function:
        name, _ = self.text().decode(), self.text()
        arguments = self.items(self.type)
        self.items(self.text)
        self.items(lambda: self.number(4))
        return Function(name, tuple(arguments))

    def type(self) -> str:
        code, bits, _ = self.number(1), self.number(1), self.number(2)
        return TYPES[code] + (str(bits) if code != HANDLE else "")


HANDLE = 3
TYPES = {0: "int", 1: "uint", 2: "float", HANDLE: "handle", 4: "bfloat"}
"""DLPack's codes of types."""


def _number(value: int) -> bytes:
    return value.to_bytes(8, "little")


def _text(data: bytes) -> bytes:
    return _number(len(data)) + data
