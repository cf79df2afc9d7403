"""Weights in a file of their own beside the model, as ONNX's external data, written one piece at a time."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from onnx import StringStringEntryProto, TensorProto

from deepzig.compiler.weights import WeightSource

ALIGNMENT = 4096
"""Bytes: a page, so that onnxruntime can map weights instead of reading them."""

ITEM_BITS: Mapping[int, int] = {
    TensorProto.FLOAT: 32, TensorProto.FLOAT16: 16, TensorProto.BFLOAT16: 16,
    TensorProto.INT8: 8, TensorProto.UINT8: 8, TensorProto.INT4: 4,
}  # fmt: skip
"""Element types of ONNX -> bits of an element."""

Pieces = Callable[[WeightSource], Iterable[npt.NDArray[np.generic]]]
"""Makes a tensor's data, as consecutive arrays, from a model's weights."""


@dataclass(frozen=True)
class ExternalTensor:
    """A tensor of the data file: its name, element type of ONNX, shape and data."""

    name: str
    element: int
    shape: tuple[int, ...]
    pieces: Pieces

    @property
    def size(self) -> int:
        """Bytes of its data."""
        return -(-math.prod(self.shape) * ITEM_BITS[self.element] // 8)


def external_tensors(tensors: Iterable[ExternalTensor], location: str) -> Iterator[TensorProto]:
    """The initialisers that stand for the tensors of the file `location`, in the order in which they are written."""
    at = 0
    for tensor in tensors:
        places = {"location": location, "offset": at, "length": tensor.size}
        entries = [StringStringEntryProto(key=k, value=str(v)) for k, v in places.items()]
        yield TensorProto(
            name=tensor.name, data_type=tensor.element, dims=tensor.shape, data_location=TensorProto.EXTERNAL,
            external_data=entries,
        )  # fmt: skip
        at += -(-tensor.size // ALIGNMENT) * ALIGNMENT


def write_external(
    path: Path, tensors: Iterable[ExternalTensor], source: WeightSource, progress: Callable[[int], None]
) -> None:
    """Write the data file, and have it on the disk.

    Args:
        path: the file.
        tensors: what to write.
        source: the model's weights.
        progress: told of the bytes that were written since it was called last.

    Raises:
        OSError: the file can't be written.
        ValueError: a tensor's data is not as long as its shape says.
    """
    with path.open("wb") as file:
        for tensor in tensors:
            written = 0
            for piece in tensor.pieces(source):
                written += file.write(np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data)
            if written != tensor.size:
                raise ValueError(f"{tensor.name} has {tensor.size} bytes, {written} were written")
            file.write(bytes(-written % ALIGNMENT))
            progress(written)
        file.flush()
        os.fsync(file.fileno())
