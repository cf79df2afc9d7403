"""From the text of `--target` to a target and its table of kernels."""

from __future__ import annotations

from deepzig.errors import DeepZigError

from .base import Table, Target
from .cpu.features import CpuTarget

DEFAULT = "llvm"
"""The target if none is named."""

USED = frozenset({"avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512dq", "avx512vl", "neon"})
"""The CPU features that kernels can make use of."""

LEVELS = {
    "x86-64-v3": frozenset({"avx2", "fma", "f16c"}),
    "x86-64-v4": frozenset({"avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512dq", "avx512vl"}),
}
"""Names for sets of features, as the x86-64 psABI has them."""

CHOICES = ("llvm", "llvm:cpu=native", *(f"llvm:cpu={level}" for level in LEVELS))
"""What `find_target` takes."""


def find_target(spec: str, native: frozenset[str]) -> tuple[Target, Table]:
    """The target that `spec` names.

    Args:
        spec: one of CHOICES.
        native: the features of this machine.

    Raises:
        DeepZigError: no such target; this machine lacks what the kernels need.
    """
    kind, _, options = spec.partition(":")
    key, _, cpu = options.partition("=")
    if kind != "llvm" or (options and key != "cpu") or cpu not in ("", "native", *LEVELS):
        raise DeepZigError(f"no target is called {spec!r}", "--target", f"choose from {', '.join(CHOICES)}")
    from .cpu.lowering import LOWERINGS

    return CpuTarget(LEVELS.get(cpu, native & USED)), LOWERINGS
