"""The devices that kernels run on, by the names that people and manifests give them, as data."""

from __future__ import annotations

import re
from dataclasses import dataclass

from deepzig.errors import DeepZigError

CPU, CUDA, METAL, WEBGPU = "cpu", "cuda", "metal", "webgpu"

KINDS = {CUDA: 2, METAL: 8, WEBGPU: 15, CPU: 1}
"""Kind of device -> its number (DLDeviceType of dlpack.h). Where an artifact has code for several, the
first is taken."""

ROUNDING = frozenset({CUDA})
"""Kinds of devices whose matrix units take 2-byte floats: rows that meet matrices of these are rounded to them, and to
bf16 in what goes with products of quantised matrices."""

CAPABILITY = re.compile(r"(?:sm|ptx)_(\d+)(\d)([af]?)")
"""A feature that is code for a compute capability of CUDA: machine code, or PTX for the driver to compile."""


@dataclass(frozen=True)
class Device:
    """One device: its kind, and its number among those of the kind."""

    kind: str
    index: int = 0

    def __str__(self) -> str:
        return self.kind if self.kind == CPU else f"{self.kind}:{self.index}"


HOST = Device(CPU)


@dataclass(frozen=True)
class Gpu:
    """A GPU that is there.

    Attributes:
        device: which it is.
        name: what it calls itself.
        memory: bytes; None where the memory is that of the CPU.
        capability: compute capability of CUDA, such as (9, 0); None of others.
        bandwidth: bytes a second that its memory can give; None where that is not known.
    """

    device: Device
    name: str
    memory: int | None = None
    capability: tuple[int, int] | None = None
    bandwidth: float | None = None

    @property
    def architecture(self) -> str:
        """The compute capability as the compiler spells it, such as sm_90."""
        return "sm_{}{}".format(*self.capability or ("", ""))


def parse_device(text: str) -> Device:
    """The device that a user names: a kind, or a kind and a number such as cuda:1.

    Raises:
        DeepZigError: there is no such kind, or a number that is none.
    """
    kind, colon, number = text.partition(":")
    if kind not in KINDS or (colon and (kind == CPU or not (number.isascii() and number.isdecimal()))):
        known = ", ".join(sorted(KINDS))
        raise DeepZigError(f"there is no device {text!r}", "option device", f"choose from {known}, or {CUDA}:1")
    return Device(kind, int(number or 0))


def compiled_for(features: frozenset[str]) -> frozenset[str]:
    """Those of a build's features that name code for compute capabilities: one of them has to fit, not all."""
    return frozenset(filter(CAPABILITY.fullmatch, features))


def fits(feature: str, capability: tuple[int, int]) -> bool:
    """Whether a GPU runs the code that a feature names (CUDA C++ programming guide, "Binary" and "PTX compatibility").

    Machine code runs on its major version from its minor version on, PTX on whatever is not older. With the suffix `a`
    both are for exactly one version, with `f` for a family: a major version, from a minor version on.
    """
    found = CAPABILITY.fullmatch(feature)
    assert found is not None, feature
    major, minor, suffix = int(found[1]), int(found[2]), found[3]
    if suffix == "a":
        return capability == (major, minor)
    if feature.startswith("ptx") and not suffix:
        return capability >= (major, minor)
    return capability[0] == major and capability[1] >= minor
