"""Devices: their names, what code runs on them, and what NVIDIA's driver tells."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any

import pytest

from deepzig.artifacts import cuda_driver
from deepzig.artifacts.cuda_driver import cuda_gpu
from deepzig.artifacts.devices import HOST, Device, Gpu, compiled_for, fits, parse_device
from deepzig.errors import DeepZigError

UPDATE = "install NVIDIA's driver of version 580 or newer, or compile the model for the CPU"


@pytest.mark.parametrize(
    ("text", "device"),
    [
        ("cpu", HOST), ("cuda", Device("cuda")), ("cuda:0", Device("cuda")), ("cuda:13", Device("cuda", 13)),
        ("metal", Device("metal")), ("webgpu", Device("webgpu")),
    ],
)  # fmt: skip
def test_names(text: str, device: Device) -> None:
    assert parse_device(text) == device and parse_device(str(device)) == device
    assert str(device) == {"cuda": "cuda:0", "metal": "metal:0", "webgpu": "webgpu:0"}.get(text, text)


@pytest.mark.parametrize("text", ["", "CUDA", "cuda:", "cuda:-1", "cuda:x", "cuda:1:2", "cpu:0", " cuda", "cuda:²"])
def test_what_is_no_name(text: str) -> None:
    with pytest.raises(DeepZigError) as caught:
        parse_device(text)
    assert str(caught.value) == (
        f"there is no device {text!r}\n  at: option device\n  fix: choose from cpu, cuda, metal, webgpu, or cuda:1"
    )


@pytest.mark.parametrize(
    ("capability", "runs"),
    [
        ((7, 5), set()),
        ((8, 0), {"sm_80", "ptx_80"}),
        ((8, 9), {"sm_80", "sm_89", "ptx_80", "ptx_89"}),
        ((9, 0), {"sm_90", "sm_90a", "ptx_80", "ptx_89", "ptx_90a"}),
        ((10, 0), {"sm_100", "sm_100f", "ptx_80", "ptx_89"}),
        ((10, 3), {"sm_100", "sm_100f", "ptx_80", "ptx_89"}),
        ((12, 1), {"ptx_80", "ptx_89"}),
    ],
)
def test_what_code_runs(capability: tuple[int, int], runs: set[str]) -> None:
    codes = {"sm_80", "sm_89", "sm_90", "sm_90a", "sm_100", "sm_100f", "ptx_80", "ptx_89", "ptx_90a"}
    assert {code for code in codes if fits(code, capability)} == runs
    assert compiled_for(frozenset({*codes, "avx2", "sm_", "sm_9", "ptx"})) == codes
    assert Gpu(Device("cuda"), "x", 1, capability).architecture == f"sm_{capability[0]}{capability[1]}"


class Driver:
    """libcuda with two GPUs; `failing` is a function and the status that it returns."""

    def __init__(self, version: int = 13_010, count: int = 2, failing: tuple[str, int] = ("", 0)) -> None:
        self.failing = failing
        self.numbers = {"cuDriverGetVersion": version, "cuDeviceGetCount": count}
        self.started = 0

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: self.failing[1] if self.failing[0] == name else self.call(name, *arguments)

    def call(self, name: str, *arguments: Any) -> int:
        first = getattr(arguments[0], "_obj", arguments[0])
        if name in self.numbers:
            first.value = self.numbers[name]
        elif name == "cuInit":
            self.started += 1
        elif name == "cuDeviceGet":
            first.value = 70 + arguments[1]
        elif name == "cuDeviceGetName":
            first.value = f"H{arguments[2]}".encode()
        elif name == "cuDeviceTotalMem_v2":
            first.value = arguments[1] << 32
        elif name == "cuDeviceGetAttribute":
            assert arguments[2] in (70, 71)
            first.value = {75: 9, 76: arguments[2] - 70, 36: 2_000_000, 37: 5120}[arguments[1]]
        else:
            assert name == "cuGetErrorString"
            arguments[1]._obj.value = b"no such thing" if arguments[0] == 101 else None
        return 0


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Make a driver the one of this machine; None for there is none."""

    def make(driver: Driver | None, system: str = "Linux") -> None:
        name = {"Windows": "nvcuda.dll"}.get(system, "libcuda.so.1")

        def load(asked: str) -> Driver:
            assert asked == name
            if driver is None:
                raise OSError(f"{asked}: cannot open shared object file: No such file or directory")
            return driver

        monkeypatch.setattr(cuda_driver.platform, "system", lambda: system)
        monkeypatch.setattr(cuda_driver.ctypes, "CDLL", load)
        cuda_driver._driver.cache_clear()

    yield make
    cuda_driver._driver.cache_clear()


@pytest.mark.parametrize("system", ["Linux", "Windows"])
def test_gpus_of_cuda(install: Any, system: str) -> None:
    driver = Driver()
    install(driver, system)
    assert cuda_gpu(Device("cuda")) == Gpu(Device("cuda"), "H70", 70 << 32, (9, 0), 2.56e12)
    assert cuda_gpu(Device("cuda", 1)) == Gpu(Device("cuda", 1), "H71", 71 << 32, (9, 1), 2.56e12)
    assert driver.started == 1


@pytest.mark.parametrize(
    ("driver", "what", "where", "hint"),
    [
        (None, "there is no NVIDIA driver", "libcuda.so.1", UPDATE),
        (Driver(12_080), "the NVIDIA driver is for CUDA 12.8, the artifact needs 13.0", "libcuda.so.1", UPDATE),
        (
            Driver(failing=("cuInit", 101)), "the NVIDIA driver fails: no such thing (cuInit, 101)",
            "libcuda.so.1", UPDATE,
        ),
        (
            Driver(failing=("cuDeviceGetCount", 7)), "the NVIDIA driver fails: unknown error (cuDeviceGetCount, 7)",
            "device cuda:3", UPDATE,
        ),
        (Driver(), "there is no device cuda:3: the driver has 2 GPUs", "device cuda:3", "choose from cuda:0, cuda:1"),
        (Driver(count=1), "there is no device cuda:3: the driver has 1 GPU", "device cuda:3", "choose from cuda:0"),
        (Driver(count=0), "there is no device cuda:3: the driver has 0 GPUs", "device cuda:3", UPDATE),
    ],
)  # fmt: skip
def test_no_gpu_of_cuda(driver: Driver | None, what: str, where: str, hint: str, install: Any) -> None:
    install(driver)
    with pytest.raises(DeepZigError) as caught:
        cuda_gpu(Device("cuda", 3))
    assert str(caught.value) == f"{what}\n  at: {where}\n  fix: {hint}"


def test_arguments_are_of_the_types_that_the_driver_takes(install: Any) -> None:
    """c_int for numbers, size_t for memory, which is more than 4 GB."""
    seen: dict[str, list[Any]] = {}

    class Watched(Driver):
        def call(self, name: str, *arguments: Any) -> int:
            seen[name] = [type(getattr(a, "_obj", a)) for a in arguments]
            return super().call(name, *arguments)

    install(Watched())
    cuda_gpu(Device("cuda"))
    assert seen["cuDeviceTotalMem_v2"] == [ctypes.c_size_t, int]
    assert seen["cuDeviceGetAttribute"] == [ctypes.c_int, int, int]
