"""Levels whose products of bf16 round the rows that they multiply, and what such products are compared with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deepzig.artifacts.cpu_features import detect
from deepzig.artifacts.machines import MACHINES
from deepzig.targets.cpu.features import CpuTarget, Vectors

from .conftest import Array, Run, called, compile_for
from .emulate import emulated
from .latents import to_bits, to_f32

HOW = ("emulated", "real")
"""Where its instructions come from."""


@dataclass(frozen=True)
class Level:
    """A level, and how its kernels are run.

    Attributes:
        name: of MACHINES.
        how: of HOW.
        folder: where libraries may be put.
    """

    name: str
    how: str
    folder: Path

    @property
    def target(self) -> CpuTarget:
        return CpuTarget(MACHINES[self.name].features)

    @property
    def vectors(self) -> Vectors:
        return self.target.vectors

    def __call__(self, kernel: Any) -> Run:
        """A function on numpy arrays; skips the test where the machine's own instructions are asked for in vain."""
        if self.how == "emulated":
            return emulated(kernel, self.target, self.folder)
        if not self.target.features <= detect():
            pytest.skip(f"this machine is not {self.name}")
        executable, name = compile_for(kernel, self.target.tvm_target())
        return lambda *arrays: called(executable[name], arrays)


def normal(rng: np.random.Generator, *shape: int) -> Array:
    return rng.standard_normal(shape, np.float32)


def halves(rng: np.random.Generator, *shape: int) -> Array:
    """The bits of a random weight."""
    return to_bits(normal(rng, *shape) / np.float32(np.sqrt(shape[-1])), "bf16")


def near(x: Array) -> Any:
    """Rounded to bf16, as float64."""
    return exact(to_bits(x, "bf16"))


def exact(bits: Array) -> Any:
    return to_f32(bits, "bf16").astype(np.float64)
