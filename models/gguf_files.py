"""GGUF files (ggml-org/ggml, docs/gguf.md), read by the package gguf: metadata, and tensors one piece at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deepzig.errors import DeepZigError
from deepzig.tensorfile import MEND, TensorEntry

from .files import Stored
from .storage import NUMPY, Weight

PLAIN = {"F32": "f32", "F16": "f16", "BF16": "bf16"}
"""Types whose elements are floats as they are -> their names here."""

BLOCKS = ("Q8_0", "Q4_0")
"""Types of blocks of small integers with a scale, read as f32."""


@dataclass(frozen=True)
class GgufFile:
    """Metadata by key, and tensors by name."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Weight]


def read_gguf(path: Path) -> GgufFile:
    """The contents of a file.

    Raises:
        DeepZigError: the package gguf is not installed; the file can't be read, is damaged, or holds a type of tensors
            that is not supported.
    """
    try:
        from gguf import GGUFReader
    except ImportError:
        raise DeepZigError("gguf is not installed", str(path), "pip install 'deepzig[gguf]'") from None
    try:
        reader = GGUFReader(path)
        metadata = {key: field.contents() for key, field in reader.fields.items()}
        tensors = {tensor.name: _weight(path, tensor) for tensor in reader.tensors}
    except OSError as error:
        raise DeepZigError(f"the file can't be read: {error.strerror}", str(path), "check the path") from None
    except (ValueError, LookupError, OverflowError, TypeError, MemoryError) as error:  # what gguf raises on damage
        raise DeepZigError(f"the file is truncated or no GGUF: {_line(error)}", str(path), MEND) from None
    return GgufFile(path, metadata, tensors)


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _weight(path: Path, tensor: Any) -> Weight:
    """A tensor of the package as one of ours; GGUF lists the fastest dimension first."""
    kind: str = tensor.tensor_type.name
    shape = tuple(int(size) for size in reversed(tensor.shape))
    begin = int(tensor.data_offset)
    entry = TensorEntry(tensor.name, kind, tuple(map(int, tensor.data.shape)), begin, begin + int(tensor.n_bytes))
    stored = Stored(path, entry)
    if kind in PLAIN:
        dtype = PLAIN[kind]
        whole = Stored(path, TensorEntry(tensor.name, kind, shape, entry.begin, entry.end))
        return Weight(stored.where, shape, dtype, lambda index: whole.read(NUMPY[dtype], index))
    if kind not in BLOCKS:
        hint = f"use a file in one of {', '.join((*PLAIN, *BLOCKS))}"
        raise DeepZigError(f"tensors of type {kind} can't be read", stored.where, hint)

    def read(index: tuple[int, ...]) -> npt.NDArray[Any]:
        from gguf.quants import dequantize

        rows = np.atleast_2d(stored.read(np.dtype(np.uint8), index))
        return dequantize(rows, tensor.tensor_type).reshape(shape[len(index) :])

    return Weight(stored.where, shape, "f32", read)
