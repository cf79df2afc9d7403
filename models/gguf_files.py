"""GGUF files: metadata and tensors, read with nothing but the standard library and believed only after checks.

Format (ggml-org/ggml, docs/gguf.md): magic, version, counts; key-value pairs; for each tensor its name, sizes (the
fastest first), type and offset; then the payload, whose parts are aligned. Blocks of quantised types are those of
ggml-quants.h.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from deepzig.errors import DeepZigError
from deepzig.tensorfile import MEND, TensorEntry

from .files import Stored
from .storage import NUMPY, Weight

Array = npt.NDArray[Any]

MAX_COUNT = 1 << 24
"""Of keys, tensors and elements of an array; the largest vocabularies have 2^18."""

SCALARS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip
STRING, ARRAY = 8, 9
"""Types of values; those of SCALARS as `struct` writes them."""


@dataclass(frozen=True)
class Kind:
    """A type of tensor.

    Attributes:
        name: what it is called.
        bytes: bytes of a block.
        elements: elements of a block.
        decode: f32 [..., blocks, elements] of bytes [..., blocks, bytes]; None if elements are floats as they are.
    """

    name: str
    bytes: int
    elements: int
    decode: Callable[[Array], Array] | None = None


def _scale(blocks: Array) -> Array:
    """The f16 that each block begins with."""
    return np.ascontiguousarray(blocks[..., :2]).view(np.float16).astype(np.float32)


def _q8_0(blocks: Array) -> Array:
    x = blocks[..., 2:].view(np.int8).astype(np.float32)
    x *= _scale(blocks)
    return x


def _q4_0(blocks: Array) -> Array:
    """16 bytes hold 32 nibbles: the low ones first."""
    codes = blocks[..., 2:]
    x = np.concatenate([codes & 15, codes >> 4], -1).astype(np.float32)
    x -= np.float32(8)
    x *= _scale(blocks)
    return x


KINDS: Mapping[int, Kind] = {
    0: Kind("f32", 4, 1),
    1: Kind("f16", 2, 1),
    30: Kind("bf16", 2, 1),
    8: Kind("Q8_0", 34, 32, _q8_0),
    2: Kind("Q4_0", 18, 32, _q4_0),
}
OTHER_KINDS = {
    3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K",
    16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS",
    24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip
"""Types that are known by name only."""


@dataclass(frozen=True)
class GgufFile:
    """Metadata by key, and tensors by name."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Weight]


@dataclass(frozen=True)
class _Reader:
    file: BinaryIO
    path: Path

    def fail(self, what: str, tensor: str = "") -> DeepZigError:
        return DeepZigError(what, f"{self.path}, tensor {tensor}" if tensor else str(self.path), MEND)

    def take(self, count: int) -> bytes:
        raw = self.file.read(count)
        if len(raw) != count:
            raise self.fail("the file ends within its header")
        return raw

    def number(self, kind: str) -> Any:
        return struct.unpack(kind, self.take(struct.calcsize(kind)))[0]

    def count(self, what: str) -> int:
        value = self.number("<Q")
        if value > MAX_COUNT:
            raise self.fail(f"the header claims {value} {what}")
        return int(value)

    def text(self) -> str:
        raw = self.take(self.count("bytes of text"))
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            raise self.fail("the header holds text that is not UTF-8") from None

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.text()
        if kind == ARRAY:
            inner = self.number("<I")
            count = self.count("elements of an array")
            if inner in SCALARS:
                code = SCALARS[inner]
                return list(struct.unpack(f"<{count}{code[1]}", self.take(count * struct.calcsize(code))))
            if inner == STRING:
                return [self.text() for _ in range(count)]
            kind = inner
        if kind not in SCALARS:
            raise self.fail(f"the header holds a value of the unknown type {kind}")
        return self.number(SCALARS[kind])


def read_gguf(path: Path) -> GgufFile:
    """The contents of a file.

    Raises:
        DeepZigError: it can't be read, is truncated, or contradicts itself.
    """
    try:
        with path.open("rb") as file:
            return _read(_Reader(file, path), path.stat().st_size)
    except OSError as error:
        raise DeepZigError(f"the file can't be read: {error.strerror}", str(path), "check the path") from None


def _read(r: _Reader, size: int) -> GgufFile:
    if r.take(4) != b"GGUF":
        raise r.fail("the file is not GGUF")
    version = r.number("<I")
    if version not in (2, 3):
        raise DeepZigError(f"GGUF of version {version} can't be read", str(r.path), "write the file as version 3")
    tensor_count, key_count = r.count("tensors"), r.count("keys")
    metadata: dict[str, Any] = {}
    for _ in range(key_count):
        key = r.text()
        if key in metadata:
            raise r.fail(f"the header names {key!r} twice")
        metadata[key] = r.value(r.number("<I"))
    infos: dict[str, tuple[tuple[int, ...], int, int]] = {}
    for _ in range(tensor_count):
        name = r.text()
        if name in infos:
            raise r.fail("the header names the tensor twice", name)
        rank = r.number("<I")
        if rank > 4:
            raise r.fail(f"the tensor has {rank} dimensions", name)
        shape = tuple(r.number("<Q") for _ in range(rank))[::-1]
        infos[name] = (shape, r.number("<I"), r.number("<Q"))
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or alignment < 1:
        raise r.fail(f"general.alignment is {alignment!r}")
    start = -(-r.file.tell() // alignment) * alignment
    return GgufFile(r.path, metadata, {n: _weight(r, n, *info, start, size) for n, info in infos.items()})


def _weight(r: _Reader, name: str, shape: tuple[int, ...], kind: int, offset: int, start: int, size: int) -> Weight:
    if kind not in KINDS:
        label = OTHER_KINDS.get(kind, f"number {kind}")
        hint = f"use a file in one of {', '.join(k.name for k in KINDS.values())}"
        raise DeepZigError(f"tensors of type {label} can't be read", f"{r.path}, tensor {name}", hint)
    k = KINDS[kind]
    if k.elements > 1 and (not shape or shape[-1] % k.elements):
        raise r.fail(f"{k.name}{list(shape)} does not divide into blocks of {k.elements}", name)
    rows = (*shape[:-1], shape[-1] // k.elements * k.bytes) if k.elements > 1 else shape
    end = start + offset + math.prod(rows) * (1 if k.elements > 1 else k.bytes)
    if end > size:
        raise r.fail(f"the file ends {end - size} bytes before the tensor does", name)
    stored = Stored(r.path, TensorEntry(name, k.name, rows, start + offset, end))
    decode = k.decode
    if decode is None:
        return Weight(stored.where, shape, k.name, lambda index: stored.read(NUMPY[k.name], index))

    def read(index: tuple[int, ...]) -> Array:
        raw = stored.read(np.dtype(np.uint8), index)
        return decode(raw.reshape(*raw.shape[:-1], -1, k.bytes)).reshape(shape[len(index) :])

    return Weight(stored.where, shape, "f32", read)
