"""Which of an artifact's builds is taken, and the device that it runs on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from deepzig.errors import DeepZigError

from .cuda_driver import cuda_gpu
from .devices import CUDA, HOST, KINDS, WEBGPU, Device, Gpu, compiled_for, fits
from .machines import ANYWHERE, Machine, fitting
from .manifest import Build, Manifest

log = logging.getLogger(__name__)

Find = Callable[[Device], Gpu]
"""The GPU that a device stands for; raises DeepZigError where there is none."""


@dataclass(frozen=True)
class Choice:
    """A build, and the device that its kernels run on."""

    build: Build
    device: Device


def find_gpu(device: Device) -> Gpu:
    """The GPU of this machine that a device stands for.

    Raises:
        DeepZigError: there is none.
    """
    if device.kind == CUDA:
        return cuda_gpu(device)
    if device.index:  # Apple's chips have one GPU, and it needs no driver; a browser takes the one that it likes
        raise DeepZigError(f"there is no device {device}", f"device {device}", f"choose {Device(device.kind)}")
    return Gpu(device, "the GPU that Chromium takes" if device.kind == WEBGPU else "the GPU of this Mac")


def choose(
    manifest: Manifest, machine: Machine, path: Path, device: Device | None = None, find: Find = find_gpu
) -> Choice:  # fmt: skip
    """The build that makes the most of the machine.

    Args:
        manifest: of the artifact at `path`.
        machine: the CPU and the system.
        path: for errors.
        device: where it shall run; by default where the artifact can, on a GPU before the CPU.
        find: tells of GPUs.

    Raises:
        DeepZigError: there is no build for the device or the platform, the CPU lacks a feature that all need, or there
            is no such GPU or no code for it.
    """
    have = {build.device for build in manifest.builds}
    refused: list[DeepZigError] = []
    for one in [Device(kind) for kind in KINDS if kind in have] if device is None else [device]:
        try:
            return Choice(_choose(manifest, machine, path, one, find), one)
        except DeepZigError as error:
            log.info("not on %s: %s", one, error.what)
            refused.append(error)
    raise refused[0]


def _choose(manifest: Manifest, machine: Machine, path: Path, device: Device, find: Find) -> Build:
    builds = [b for b in manifest.builds if b.device == device.kind]
    target = device.kind if device != HOST else f"llvm:cpu={fitting(machine) or 'native'}"
    if not builds:
        what = f"the artifact is for the device {_either(b.device for b in manifest.builds)}, not for {device.kind}"
        raise DeepZigError(what, str(path), _mend(manifest, target))
    same = [b for b in builds if b.platform == machine.platform] or [b for b in builds if b.platform in ANYWHERE]
    if not same:
        what = f"the artifact is for {_either(b.platform for b in builds)}, this machine is {machine.platform}"
        raise DeepZigError(what, str(path), _mend(manifest, target))
    runnable = [b for b in same if not lacking(b, machine)]
    if not runnable:
        lacks = min((lacking(b, machine) for b in same), key=len)
        what = f"this CPU lacks {', '.join(lacks)}, which the artifact needs"
        raise DeepZigError(what, str(path), _mend(manifest, target))
    if device != HOST:
        gpu = find(device)
        codes = _either(code for b in runnable for code in sorted(compiled_for(b.features)))
        runnable = [b for b in runnable if has_code(b, gpu)]
        if not runnable:
            what = f"the artifact has code for {codes or 'no GPU'}, and {gpu.name} is {gpu.architecture}"
            raise DeepZigError(what, f"{path}, device {device}", _mend(manifest, f"{target}:arch={gpu.architecture}"))
    return max(runnable, key=lambda b: len(b.features))


def _either(names: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(names))


def _mend(manifest: Manifest, target: str) -> str:
    return f"deepzig-compile {quote(str(manifest.model.get('name', 'MODEL')))} --target {target} -o DIR"


def lacking(build: Build, machine: Machine) -> list[str]:
    """The instruction sets that a build needs and the CPU has not; what runs it anywhere has all of its own."""
    if build.platform in ANYWHERE:
        return []
    return sorted(build.features - compiled_for(build.features) - machine.features)


def has_code(build: Build, gpu: Gpu) -> bool:
    """Whether a build for a kind of devices has code for this one of them."""
    return gpu.capability is None or any(fits(code, gpu.capability) for code in compiled_for(build.features))


def obstacle(build: Build, machine: Machine, device: Device | None = None, find: Find = find_gpu) -> str:
    """Why a machine can't run a build, on a device or the first of the build's kind; an empty text if it can."""
    if device is None:
        device = Device(build.device)
    if build.platform not in (machine.platform, *ANYWHERE):
        return f"this machine is {machine.platform}"
    if lacks := lacking(build, machine):
        return f"this CPU lacks {', '.join(lacks)}"
    if device.kind != build.device:
        return f"it is not for {device}"
    if device == HOST:
        return ""
    try:
        gpu = find(device)
    except DeepZigError as error:
        return error.what
    return "" if has_code(build, gpu) else f"{gpu.name} is {gpu.architecture}"
