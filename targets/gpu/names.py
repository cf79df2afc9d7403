"""From the text of `--target` to a target with a GPU: `cuda:arch=sm_80+sm_90a,host=aarch64-linux`, `metal`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from deepzig.artifacts.machines import WEB
from deepzig.errors import DeepZigError

from .adapter import read_limits
from .device import CUDA, METAL, WEBGPU, Gpu, GpuTarget
from .nvcc import VIRTUAL


@dataclass(frozen=True)
class Kind:
    """A kind of devices that `--target` knows.

    Attributes:
        gpu: what the device can do.
        hosts: platforms that launch its kernels: those that TVM has a runtime library with this device for, or pages.
        archs: architectures that machine code can be made for.
        usual: those that it is made for if none is named.
        limits: whether a file can say what a device has beyond what all have.
    """

    gpu: Gpu
    hosts: tuple[str, ...]
    archs: tuple[str, ...] = ()
    usual: tuple[str, ...] = ()
    limits: bool = False


GPUS = {
    # matrix units multiply bf16 from sm_80 on; sm_89 is Ada, 90a Hopper, 100 and 103 Blackwell, 120 its GeForces
    "cuda": Kind(
        CUDA,
        ("x86_64-linux", "aarch64-linux", "x86_64-windows"),
        archs=(
            "sm_80",
            "sm_86",
            "sm_87",
            "sm_88",
            "sm_89",
            "sm_90",
            "sm_90a",
            "sm_100",
            "sm_100a",
            "sm_103",
            "sm_103a",
            "sm_110",
            "sm_110a",
            "sm_120",
            "sm_120a",
            "sm_121",
            "sm_121a",
        ),
        usual=("sm_80", "sm_89", "sm_90a"),
    ),
    "metal": Kind(METAL, ("aarch64-macos",)),
    "webgpu": Kind(WEBGPU, (WEB,), limits=True),
}
"""What stands before options in `--target` -> kind of device."""


def gpu_target(spec: str, here: str) -> GpuTarget:
    """The target that `spec` names.

    Args:
        spec: a name of GPUS, and perhaps after a colon options joined by commas: `arch=`, architectures joined by +,
            `host=`, a platform, and `limits=`, a file with the limits of a WebGPU adapter. PTX, which later GPUs run,
            is of the lowest architecture that is named.
        here: the platform that compiles; the host if none is named, and it can be.

    Raises:
        DeepZigError: an option, an architecture or a host that there is not, or limits that can't be read.
    """
    name, _, rest = spec.partition(":")
    kind = GPUS[name]
    given = [option.partition("=") for option in rest.split(",") if option]
    options = {option: value for option, _, value in given}
    allowed = {"arch": kind.archs, "host": kind.hosts, "limits": (options.get("limits", ""),) if kind.limits else ()}
    for option, value in options.items():
        if not allowed.get(option):
            known = " and ".join(f"{o}=" for o, values in allowed.items() if values)
            raise DeepZigError(f"the target {name} has no option {option!r}", "--target", f"it has {known}")
        parts = value.split("+") if option == "arch" else [value]
        for part in parts:
            if part not in allowed[option]:
                hint = f"choose from {', '.join(allowed[option])}"
                raise DeepZigError(f"the target {name} has no {option} {part!r}", "--target", hint)
            if parts.count(part) > 1:
                raise DeepZigError(f"the {option} {part} is named twice", "--target", "name it once")
    host = options.get("host") or (here if here in kind.hosts else kind.hosts[0])
    archs = frozenset(options["arch"].split("+") if "arch" in options else kind.usual)
    gpu = read_limits(Path(options["limits"])) if "limits" in options else kind.gpu
    return GpuTarget(gpu, archs | _later(archs), host, name)


def _later(archs: frozenset[str]) -> frozenset[str]:
    """PTX for GPUs that there is no machine code for; that of an architecture such as 90a would be for it alone."""
    numbers = [int(re.sub(r"\D", "", arch)) for arch in archs]
    return frozenset({f"{VIRTUAL}{min(numbers)}"} if numbers else ())
