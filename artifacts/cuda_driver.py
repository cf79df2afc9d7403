"""What NVIDIA's driver tells of its GPUs, asked by ctypes: nothing of CUDA has to be installed for it."""

from __future__ import annotations

import ctypes
import platform
from functools import cache
from typing import Any

from deepzig.errors import DeepZigError

from .devices import CUDA, Device, Gpu

LIBRARY = {"Windows": "nvcuda.dll"}
"""System -> the driver's library, where it is not that of Linux."""

LEAST = 13
"""The major version of CUDA that the runtime library of artifacts, libcudart.so.13, wants of a driver."""

UPDATE = "install NVIDIA's driver of version 580 or newer, or compile the model for the CPU"

MAJOR, MINOR, CLOCK, WIDTH = 75, 76, 36, 37
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR, _MEMORY_CLOCK_RATE (kHz), _GLOBAL_MEMORY_BUS_WIDTH (bits) of
cuda.h."""

NAME_BYTES = 256


def cuda_gpu(device: Device) -> Gpu:
    """The GPU that a device stands for.

    Raises:
        DeepZigError: there is no driver, one that is too old or that fails, or no such GPU.
    """
    driver = _driver()
    where = f"device {device}"
    count = _number(driver, "cuDeviceGetCount", where)
    if device.index >= count:
        what = f"there is no device {device}: the driver has {count} GPU{'s' if count != 1 else ''}"
        known = ", ".join(str(Device(CUDA, number)) for number in range(count))
        raise DeepZigError(what, where, f"choose from {known}" if known else UPDATE)
    handle = _number(driver, "cuDeviceGet", where, device.index)
    name = ctypes.create_string_buffer(NAME_BYTES)
    _call(driver, "cuDeviceGetName", where, name, NAME_BYTES, handle)
    memory = ctypes.c_size_t()
    _call(driver, "cuDeviceTotalMem_v2", where, ctypes.byref(memory), handle)
    major, minor, clock, width = (
        _number(driver, "cuDeviceGetAttribute", where, number, handle) for number in (MAJOR, MINOR, CLOCK, WIDTH)
    )
    bandwidth = 2.0 * clock * 1000 * width / 8  # two transfers a cycle
    return Gpu(device, name.value.decode(errors="replace"), memory.value, (major, minor), bandwidth or None)


@cache
def _driver() -> Any:
    """The driver, ready."""
    name = LIBRARY.get(platform.system(), "libcuda.so.1")
    try:
        driver = ctypes.CDLL(name)
    except OSError:
        raise DeepZigError("there is no NVIDIA driver", name, UPDATE) from None
    version = _number(driver, "cuDriverGetVersion", name)
    if version < LEAST * 1000:
        what = f"the NVIDIA driver is for CUDA {version // 1000}.{version % 1000 // 10}, the artifact needs {LEAST}.0"
        raise DeepZigError(what, name, UPDATE)
    _call(driver, "cuInit", name, 0)
    return driver


def _number(driver: Any, function: str, where: str, *arguments: int) -> int:
    """The number that a function of the driver writes to its first argument."""
    value = ctypes.c_int()
    _call(driver, function, where, ctypes.byref(value), *arguments)
    return value.value


def _call(driver: Any, function: str, where: str, *arguments: Any) -> None:
    status = getattr(driver, function)(*arguments)
    if status:
        text = ctypes.c_char_p()
        driver.cuGetErrorString(status, ctypes.byref(text))
        why = (text.value or b"unknown error").decode(errors="replace")
        raise DeepZigError(f"the NVIDIA driver fails: {why} ({function}, {status})", where, UPDATE)
