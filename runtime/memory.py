"""Where the tensors of an artifact's code lie: in the memory of the CPU, or in that of a device."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import tvm_ffi

from deepzig.artifacts.devices import CPU, HOST, KINDS, Device
from deepzig.artifacts.manifest import TensorSpec
from deepzig.errors import DeepZigError
from deepzig.tensorfile import TensorEntry

from .tensors import NUMPY, Array, DeviceTensor, Shape, Tensor, aligned, prepared

STORED = {"F32": "float32", "U32": "uint32", "BF16": "uint16", "F16": "uint16", "I32": "int32"}
"""Types of weight files -> how they travel."""

SMALL = 4096
"""Bytes of an input up to which it is kept: that of the next call is often the same, or as large."""

PIECE = 1 << 26
"""Bytes that are copied to a device at once: drivers may need as much room on the way."""

PAGES = "block_table"
"""The input whose shape hangs on the length of texts."""

POOLED = 2
"""The allocator of TVM's virtual machine that keeps what was freed."""

EXISTS = 0
"""The attribute of a device that tells whether it is there (kExist of tvm/runtime/device_api.h)."""


class Memory(Protocol):
    """Where tensors lie. What is called a tensor is one of tvm_ffi, for the code; methods run on the VM's thread.

    Attributes:
        placement: what the virtual machine is told: device type, number and allocator, those of the CPU at last.
        copies: whether weights are copied.
    """

    placement: tuple[int, ...]
    copies: bool

    def weight(self, entry: TensorEntry, data: Array) -> Any:
        """A tensor of a weight, whose bytes are given.

        Raises:
            MemoryError: there is no room for it.
        """
        ...

    def zeros(self, shape: Shape, dtype: str) -> Any:
        """A tensor of zeros; `dtype` is one of NUMPY.

        Raises:
            MemoryError: there is no room for it.
        """
        ...

    def put(self, entry: str, spec: TensorSpec, value: Tensor) -> Any:
        """A tensor of an input of an entry point, converted as needed; good for one call."""
        ...

    def take(self, tensor: Any, /) -> Tensor:
        """A tensor as others see it; nothing is copied."""
        ...

    def copy_page(self, cache: Any, source: int, target: int) -> None:
        """Copy one page of a cache, [pages, ...], to another."""

    def read_page(self, cache: Any, page: int) -> Array:
        """The bytes of a page of a cache, u8 [n]."""
        ...

    def write_page(self, cache: Any, page: int, data: Array) -> None:
        """Put such bytes there."""

    def wait(self) -> None:
        """Return when all kernels that were started are done."""

    def close(self) -> None:
        """Let go of everything."""


class HostMemory:
    """The memory of the CPU: weights are mapped, inputs that fit are passed as they are, outputs are the caller's."""

    placement: tuple[int, ...] = (KINDS[CPU], 0, POOLED)
    copies = False

    def __init__(self) -> None:
        self._view = tvm_ffi.get_global_func("runtime.TVMTensorCreateView")
        self._from_dlpack = tvm_ffi.from_dlpack
        self._small: dict[tuple[str, str], tuple[Array, Any]] = {}
        self.take: Callable[[Any], Array] = np.from_dlpack

    def weight(self, entry: TensorEntry, data: Array) -> Any:
        """The bytes as they lie."""
        return self._view(self._from_dlpack(data), tvm_ffi.Shape(entry.shape), tvm_ffi.dtype(STORED[entry.dtype]), 0)

    def zeros(self, shape: Shape, dtype: str) -> Any:
        """Memory that is taken when it is written."""
        try:
            return self._from_dlpack(aligned(shape, NUMPY[dtype], zero=True))
        except (OverflowError, ValueError) as error:  # more than numpy can count
            raise MemoryError(str(error)) from error

    def put(self, entry: str, spec: TensorSpec, value: Tensor) -> Any:
        """Small ones are copied to where the last one of the shape was: that is ready to be passed on."""
        key = entry, spec.name
        kept = self._small.get(key)
        if kept is None or kept[0].shape != value.shape:
            array = np.asarray(value)
            if array.nbytes > SMALL:
                return self._from_dlpack(prepared(array, spec))
            place = aligned(array.shape, NUMPY[spec.dtype])
            self._small[key] = kept = place, self._from_dlpack(place)
        place, tensor = kept
        place[...] = value
        return tensor

    def copy_page(self, cache: Any, source: int, target: int) -> None:
        """By numpy."""
        pages = self.take(cache)
        pages[target] = pages[source]

    def read_page(self, cache: Any, page: int) -> Array:
        """A copy."""
        return self.take(cache)[page].reshape(-1).view(np.uint8).copy()

    def write_page(self, cache: Any, page: int, data: Array) -> None:
        """By numpy."""
        place = self.take(cache)[page]
        place[...] = np.ascontiguousarray(data).view(place.dtype).reshape(place.shape)

    def wait(self) -> None:
        """Kernels are done when they return."""

    def close(self) -> None:
        """Inputs only: the rest is not kept."""
        self._small.clear()


class DeviceMemory:
    """The memory of a device.

    Args:
        device: which.
        run: does a piece of work on the VM's thread.
        replayed: entry points whose launches may be recorded and replayed with the addresses that inputs had.

    Raises:
        DeepZigError: the process has no library for it, or it is not there.
    """

    copies = True

    def __init__(
        self, device: Device, run: Callable[[Callable[[], Any]], Any], replayed: Collection[str]
    ) -> None:  # fmt: skip
        function = tvm_ffi.get_global_func
        self.run = run
        self.placement = (KINDS[device.kind], device.index, POOLED, *HostMemory.placement)
        self._device = tvm_ffi.device(device.kind, device.index)
        self._allocate, self._view = (function(f"runtime.TVMTensor{name}") for name in ("AllocWithScope", "CreateView"))
        self._from_bytes, self._to_bytes, self._from_to = (
            function(f"runtime.TVMTensorCopy{name}") for name in ("FromBytes", "ToBytes", "FromTo")
        )
        self._sync = function("runtime.Device_StreamSync")
        self._replayed = replayed
        self._places: dict[tuple[str, str, int], _Place] = {}
        if not function("runtime.GetDeviceAttr")(*self.placement[:2], EXISTS):
            what = f"TVM's runtime library finds no device {device}"
            raise DeepZigError(what, f"device {device}", "update its driver, or choose another device")

    def weight(self, entry: TensorEntry, data: Array) -> Any:
        """A copy, made piece by piece."""
        place = self._empty(data.nbytes)
        self._fill(place, data)
        return self._of(place, entry.shape, STORED[entry.dtype])

    def zeros(self, shape: Shape, dtype: str) -> Any:
        """Memory over which zeros were copied."""
        kind = np.dtype(NUMPY[dtype])
        size = math.prod(shape) * kind.itemsize
        place = self._empty(size)
        page = aligned((min(size, PIECE),), np.uint8, zero=True)
        for begin in range(0, size, PIECE):
            self._copy(place, begin, page[: size - begin])
        return self._of(place, shape, kind.name)

    def put(self, entry: str, spec: TensorSpec, value: Tensor) -> Any:
        """A copy in a place that inputs of the shape always have; a small one that is there already stays.

        What lies on the device is passed as it is, unless the entry point's launches are replayed.
        """
        if isinstance(value, DeviceTensor):
            if entry not in self._replayed:
                return value.tensor
            place = self._place(entry, spec.name, value.nbytes)
            tensor, place.sent = self._of(place.bytes, value.shape, value.dtype.name), None
            self._from_to(value.tensor, tensor)
            return tensor
        array = np.ascontiguousarray(value, NUMPY[spec.dtype])
        if spec.name == PAGES:
            array = padded(array)
        place = self._place(entry, spec.name, array.nbytes)
        sent = array.shape, array.tobytes() if array.nbytes <= SMALL else None
        if sent[1] is None or place.sent != sent:
            self._fill(place.bytes, array.reshape(-1).view(np.uint8))
            place.sent, place.tensor = sent, self._of(place.bytes, array.shape, array.dtype.name)
        return place.tensor

    def _place(self, entry: str, name: str, size: int) -> _Place:
        key = entry, name, size.bit_length()
        if key not in self._places:
            self._places[key] = _Place(self._empty(1 << size.bit_length()))
        return self._places[key]

    def take(self, tensor: Any) -> DeviceTensor:
        """A handle."""
        return DeviceTensor(self, tensor)

    def copy_page(self, cache: Any, source: int, target: int) -> None:
        """On the device."""
        self._from_to(self._page(cache, source), self._page(cache, target))

    def read_page(self, cache: Any, page: int) -> Array:
        """A copy, when all that writes it is done."""
        place = self._page(cache, page)
        array = np.empty(math.prod(place.shape) * np.dtype(str(place.dtype)).itemsize, np.uint8)
        self.read(place, array)
        return array

    def write_page(self, cache: Any, page: int, data: Array) -> None:
        """A copy."""
        self.write(self._page(cache, page), np.ascontiguousarray(data))

    def _page(self, cache: Any, page: int) -> Any:
        shape = tuple(cache.shape[1:])
        size = math.prod(shape) * np.dtype(str(cache.dtype)).itemsize
        return self._view(cache, tvm_ffi.Shape(shape), cache.dtype, page * size)

    def wait(self) -> None:
        """Kernels run behind the back of who starts them."""
        self._sync(self._device, 0)

    def close(self) -> None:
        """Inputs only: the rest is not kept."""
        self._places.clear()

    def head(self, tensor: Any, rows: int) -> DeviceTensor:
        """The first rows of a tensor."""
        return DeviceTensor(self, self._view(tensor, tvm_ffi.Shape((rows, *tensor.shape[1:])), tensor.dtype, 0))

    def read(self, tensor: Any, array: Array) -> None:
        """Copy a tensor to a contiguous array."""
        self._to_bytes(tensor, ctypes.c_void_p(array.ctypes.data), array.nbytes)

    def write(self, tensor: Any, array: Array) -> None:
        """Copy a contiguous array to a tensor."""
        self._from_bytes(tensor, ctypes.c_void_p(array.ctypes.data), array.nbytes)

    def _empty(self, size: int) -> Any:
        """So many bytes, one at least: some drivers have no empty memory."""
        try:
            return self._allocate(tvm_ffi.Shape((max(size, 1),)), tvm_ffi.dtype("uint8"), self._device, None)
        except (RuntimeError, ValueError) as error:  # no room, or more than 64 bits can count
            raise MemoryError(str(error)) from error

    def _of(self, place: Any, shape: Shape, dtype: str) -> Any:
        return self._view(place, tvm_ffi.Shape(shape), tvm_ffi.dtype(dtype), 0)

    def _fill(self, place: Any, data: Array) -> None:
        for begin in range(0, data.nbytes, PIECE):
            self._copy(place, begin, data[begin : begin + PIECE])

    def _copy(self, place: Any, begin: int, data: Array) -> None:
        self.write(self._view(place, tvm_ffi.Shape(data.shape), tvm_ffi.dtype("uint8"), begin), data)


def memory_of(device: Device, run: Callable[[Callable[[], Any]], Any], replayed: Collection[str]) -> Memory:
    """The memory of a device; the arguments are those of `DeviceMemory`, whose errors it raises."""
    return HostMemory() if device == HOST else DeviceMemory(device, run, replayed)


@dataclass
class _Place:
    """Memory of an input: its bytes, the tensor that is there, and what was sent there: shape, and bytes if few."""

    bytes: Any
    tensor: Any = None
    sent: tuple[Shape, bytes | None] | None = None


def padded(table: Array) -> Array:
    """A block table with columns that nothing reads, up to a power of two: calls differ in few shapes."""
    rows, columns = table.shape
    wide = np.zeros((rows, 1 << max(columns - 1, 0).bit_length()), table.dtype)
    wide[:, :columns] = table
    return wide
