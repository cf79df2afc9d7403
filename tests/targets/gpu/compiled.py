"""A checkpoint compiled as `--target cuda` and `metal` do it, but for software GPUs: whole artifacts, run whole."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import tvm

from deepzig.compiler import build, driver
from deepzig.compiler.options import Options
from deepzig.targets.gpu.device import CUDA, METAL, GpuTarget
from deepzig.targets.gpu.lowering import LOWERINGS

from .software import library

GPUS = {gpu.kind: gpu for gpu in (CUDA, METAL)}
FEATURES = {"cuda": frozenset({"sm_80", "ptx_80"}), "metal": frozenset[str]()}
PLATFORM = f"{platform.machine()}-linux"


class Software(GpuTarget):
    """A target that says what machine code it has, and has text."""

    def compile(self, module: Any) -> Any:
        """Without the device's compiler."""
        return GpuTarget(self.gpu, frozenset(), self.platform, self.name).compile(module)


def compile_for(device: str, checkpoint: Path, out: Path, **options: Any) -> Path:
    """An artifact of a checkpoint, whose kernels stay text until a software GPU compiles them for the CPU."""
    target = Software(GPUS[device], FEATURES[device], PLATFORM, device)

    def libraries(_: Any) -> Mapping[str, Path]:
        runtime = Path(tvm.__file__).parent / "lib" / "libtvm_runtime.so"
        return {f"lib/{PLATFORM}/{runtime.name}": runtime, f"lib/{PLATFORM}/libtvm_runtime_{device}.so": library()}

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(driver, "find_targets", lambda *_: ((target,), LOWERINGS))
        patched.setattr(build, "libraries", libraries)
        driver.compile_model(checkpoint, out, Options(self_check=options.pop("self_check", "none"), **options))
    return out
