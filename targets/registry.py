"""From the text of `--target` to targets and their table of kernels."""

from __future__ import annotations

from collections.abc import Collection

from deepzig.artifacts.machines import MACHINES, WASM, Machine
from deepzig.errors import DeepZigError

from .base import Table, Target
from .cpu.features import CpuTarget
from .gpu.device import GpuTarget
from .gpu.names import GPUS, gpu_target

DEFAULT = "llvm"
"""The target if none is named."""

NATIVE = "native"
"""The name of the machine that compiles."""

KIND = "llvm:cpu="
"""What may stand before a name."""

USED = frozenset().union(*(kind.features for kind in MACHINES.values()))
"""The instruction sets that kernels can make use of."""


def headwise(spec: str) -> Collection[str]:
    """`Target.headwise` of the targets that `spec` names, if there are such."""
    return (GpuTarget if spec.partition(":")[0] in GPUS else CpuTarget).headwise


def find_targets(spec: str, here: Machine) -> tuple[tuple[Target, ...], Table]:
    """The targets that `spec` names, whose code shares one artifact, and their kernels.

    Args:
        spec: `llvm` for the machine that compiles, or names of kinds of machines joined by `+`, with `llvm:cpu=` before
            them or not; or a kind of GPUs and its options, see `gpu.names`.
        here: the machine that compiles.

    Raises:
        DeepZigError: no such target, or one named twice.
    """
    from .cpu.lowering import LOWERINGS as CPU_LOWERINGS
    from .gpu.lowering import LOWERINGS as GPU_LOWERINGS

    if spec.partition(":")[0] in GPUS:
        return (gpu_target(spec, here.platform),), GPU_LOWERINGS
    names = (NATIVE if spec == DEFAULT else spec.removeprefix(KIND)).split("+")
    alone = [*GPUS, *(name for name, kind in MACHINES.items() if kind.platform == WASM)]
    for name in sorted(names, key=lambda name: name not in alone):
        if name in alone and len(names) > 1:
            what = f"{name} lays out weights in its own way and shares no artifact"
            raise DeepZigError(what, "--target", "make an artifact for each")
        if name not in (NATIVE, *MACHINES):
            hint = f"choose from {DEFAULT}, {NATIVE}, {', '.join(MACHINES)}, {', '.join(GPUS)}; join CPUs with +"
            raise DeepZigError(f"no target is called {name!r}", "--target", hint)
        if names.count(name) > 1:
            raise DeepZigError(f"the target {name} is named twice", "--target", "name it once")
    kinds = {NATIVE: Machine(here.platform, here.features & USED), **MACHINES}
    return tuple(CpuTarget(kinds[name].features, kinds[name].platform, name) for name in names), CPU_LOWERINGS
