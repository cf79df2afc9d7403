"""Headers of safetensors files, read with nothing but the standard library and believed only after checks.

Format: 8 bytes little-endian header length, a JSON header `name -> {dtype, shape, data_offsets}`, then the payload,
without holes (huggingface/safetensors, README.md).
"""

from __future__ import annotations

import json
import math
import stat
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import DeepZigError

DTYPE_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip
"""Bytes of an element."""

MAX_HEADER = 100_000_000
"""The format's own limit, in bytes."""

MAX_DIMENSIONS = 64
"""As many as PyTorch has; products of millions of numbers would take for ever."""

LARGEST = (1 << 63) - 1
"""The largest offset in a file."""

MEND = "download or write the file again"


@dataclass(frozen=True)
class TensorEntry:
    """A tensor of a file; `begin` and `end` are byte offsets from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_header(path: Path, begin: int = 0, size: int | None = None) -> dict[str, TensorEntry]:
    """The tensors of a file, by name, in order of position.

    Args:
        path: the file, or one that holds it.
        begin: where it begins there.
        size: its size in bytes; the rest of the file, if not given.

    Raises:
        DeepZigError: the file can't be read, is truncated, or its header contradicts itself.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):  # a pipe is waited for without end
            raise DeepZigError("the file is not a plain file", str(path), MEND)
        if size is None:
            size = status.st_size - begin
        with path.open("rb") as file:
            file.seek(begin)
            head = file.read(8)
            if len(head) < 8:
                raise DeepZigError(f"the file has {size} bytes, too few for safetensors", str(path), MEND)
            (length,) = struct.unpack("<Q", head)
            if length > min(size - 8, MAX_HEADER):
                raise DeepZigError(f"the header claims {length} bytes, the file has {size}", str(path), MEND)
            raw = file.read(length)
    except OSError as error:
        raise DeepZigError(f"the file can't be read: {error.strerror}", str(path), "check the path") from None
    entries = [_entry(k, v, begin + 8 + length, path) for k, v in _parse(raw, path).items() if k != "__metadata__"]
    entries.sort(key=lambda e: (e.begin, e.end))
    at, end = begin + 8 + length, begin + size
    for entry in entries:
        where = f"{path}, tensor {entry.name}"
        if entry.begin != at:
            raise DeepZigError("the tensor does not start where the one before ends", where, MEND)
        if entry.end > end:
            raise DeepZigError(f"the file ends {entry.end - end} bytes before the tensor does", where, MEND)
        at = entry.end
    if at != end:
        raise DeepZigError(f"{end - at} bytes follow the last tensor", str(path), MEND)
    return {entry.name: entry for entry in entries}


def _parse(raw: bytes, path: Path) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            key.encode()  # a lone surrogate is a ValueError
            if key in found:
                raise DeepZigError(f"the header names {key!r} twice", str(path), MEND)
            found[key] = value
        return found

    try:
        header = json.loads(raw.decode(), object_pairs_hook=unique, parse_constant=_refuse)
    except (ValueError, RecursionError):
        raise DeepZigError("the header is not JSON", str(path), MEND) from None
    if not isinstance(header, dict):
        raise DeepZigError("the header is not a JSON object", str(path), MEND)
    return header


def _refuse(constant: str) -> None:
    """NaN and Infinity, which Python's reader takes for JSON."""
    raise ValueError(constant)


def _entry(name: str, fields: Any, base: int, path: Path) -> TensorEntry:
    where = f"{path}, tensor {name}"
    try:
        dtype, shape, (begin, end) = fields["dtype"], fields["shape"], fields["data_offsets"]
        numbers = [*shape, begin, end]
        if not isinstance(shape, list) or not isinstance(fields["data_offsets"], list):
            raise TypeError
    except (KeyError, TypeError, ValueError):
        raise DeepZigError("the header entry lacks dtype, shape or data_offsets", where, MEND) from None
    if any(type(n) is not int or n < 0 for n in numbers):
        raise DeepZigError("shape or data_offsets are not whole numbers from 0", where, MEND)
    if len(shape) > MAX_DIMENSIONS or end > LARGEST:
        raise DeepZigError("shape or data_offsets are too large", where, MEND)
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise DeepZigError(f"the element type {dtype!r} is unknown", where, "write the tensor in a known type")
    if end - begin != math.prod(shape) * DTYPE_BYTES[dtype]:
        raise DeepZigError(f"{end - begin} bytes are not {dtype}{list(shape)}", where, MEND)
    return TensorEntry(name, dtype, tuple(shape), base + begin, base + end)
