"""Tensors as the rest of the runtime sees them: arrays of numpy, and handles of what lies on a device.

A handle is used as an array is: `np.asarray` copies it to the CPU, its first rows are a slice that stays where it is,
and assigning to all of it copies there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import EllipsisType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from deepzig.artifacts.manifest import TensorSpec

Array = npt.NDArray[Any]
Shape = tuple[int, ...]

NUMPY = {"f32": np.float32, "i32": np.int32, "u32": np.uint32, "bf16": np.uint16, "f16": np.uint16, "i8": np.int8}
"""How tensors travel; half-precision floats as bits."""

ALIGNMENT = 64
"""Bytes; kernels crash on less."""


def aligned(shape: Shape, dtype: Any, zero: bool = False) -> Array:
    """An array whose data starts at a multiple of 64 bytes; zeros cost no memory until they are written."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    raw = (np.zeros if zero else np.empty)(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)


def prepared(array: Array, spec: TensorSpec) -> Array:
    """An array as kernels want it: of the type, contiguous, aligned and writable."""
    # there and back: numpy takes any stride of a dimension of size 1 for contiguous, TVM does not
    array = np.ascontiguousarray(array, NUMPY[spec.dtype]).reshape(-1).reshape(array.shape)
    address, read_only = array.__array_interface__["data"]
    if address % ALIGNMENT == 0 and not read_only:
        return array
    copy = aligned(array.shape, array.dtype)
    copy[...] = array
    return copy


class Owner(Protocol):
    """The memory that a handle belongs to; all but `run` are for the VM's thread."""

    def run(self, work: Callable[[], Any], /) -> Any:
        """Do a piece of work on the VM's thread."""
        ...

    def head(self, tensor: Any, rows: int) -> DeviceTensor:
        """The first rows of a tensor."""
        ...

    def read(self, tensor: Any, array: Array) -> None:
        """Copy a tensor to a contiguous array."""

    def write(self, tensor: Any, array: Array) -> None:
        """Copy a contiguous array to a tensor."""


class DeviceTensor:
    """A tensor on a device, for any thread."""

    def __init__(self, owner: Owner, tensor: Any) -> None:
        self._owner = owner
        self.tensor = tensor
        self.shape: Shape = tuple(tensor.shape)
        self.dtype = np.dtype(str(tensor.dtype))

    @property
    def ndim(self) -> int:
        """How many dimensions it has."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> DeviceTensor:
        """The first rows, without a copy.

        Raises:
            IndexError: others.
        """
        begin, end, step = rows.indices(len(self))
        if (begin, step) != (0, 1):
            raise IndexError("of a device's tensor only the first rows can be taken")
        head: DeviceTensor = self._owner.run(lambda: self._owner.head(self.tensor, end))
        return head

    def __setitem__(self, all_of_it: EllipsisType, value: Any) -> None:
        array = np.empty(self.shape, self.dtype)
        array[...] = value
        self._owner.run(lambda: self._owner.write(self.tensor, array))

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> Array:
        array = np.empty(self.shape, self.dtype)
        self._owner.run(lambda: self._owner.read(self.tensor, array))
        return array if dtype is None else array.astype(dtype, copy=False)


Tensor = Array | DeviceTensor
"""What entry points take and return."""
