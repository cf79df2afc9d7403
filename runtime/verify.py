"""Replaying an artifact's self-check vectors on the machine where it stands."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from deepzig.artifacts.manifest import Call
from deepzig.artifacts.reader import Artifact
from deepzig.artifacts.selfcheck import PART, CheckedCall, Noise, SelfCheck
from deepzig.errors import DeepZigError

from .rows import RANKS, checked_rows
from .vm import VirtualMachine

Array = npt.NDArray[Any]

TOLERANCE = {"f32": 2e-5, "f16": 2e-4, "bf16": 1e-3}
"""Of each type of the cache, the largest distance of a value from the recorded one, relative to its norm. Matrices are
exact in every type and sums are f32 everywhere; what differs is the last bit of some cache entries, in 24, 11 or 8."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Finding:
    """How far one value of one kernel call is from what was recorded."""

    entry: str
    call: Call
    value: str
    distance: float


@dataclass
class Verdict:
    """What a replay found.

    Attributes:
        tolerance: the largest distance that is allowed.
        layers: the layers that were checked.
        findings: one for each value that was compared, in the order of the calls.
    """

    tolerance: float
    layers: tuple[int, ...]
    findings: list[Finding] = field(default_factory=list)

    @property
    def first(self) -> Finding | None:
        """The first value that is too far off."""
        return next((f for f in self.findings if not f.distance <= self.tolerance), None)

    @property
    def worst(self) -> Finding:
        """The value that is farthest off."""
        return max(self.findings, key=lambda f: f.distance)


def read_vectors(artifact: Artifact) -> SelfCheck:
    """The artifact's vectors.

    Raises:
        DeepZigError: it has none, or they are damaged.
    """
    if PART not in artifact.manifest.files:
        hint = "compile the model without --self-check none"
        raise DeepZigError("the artifact has no self-check vectors", str(artifact.path), hint)
    where = artifact.folder / PART
    try:
        return SelfCheck.from_text(where.read_text(encoding="utf-8"), str(where))
    except UnicodeDecodeError:
        raise DeepZigError("the self-check vectors are not UTF-8", str(where), "compile the model again") from None


def replay(
    artifact: Artifact, vectors: SelfCheck, threads: int | None = None, progress: Progress = lambda *_: None
) -> Verdict:  # fmt: skip
    """Run the recorded calls and compare what the kernels compute.

    Raises:
        DeepZigError: the vectors don't fit the artifact, or its code fails.
    """
    dtype = artifact.manifest.cache[0].dtype if artifact.manifest.cache else "f32"
    verdict = Verdict(TOLERANCE.get(dtype, TOLERANCE["bf16"]), vectors.layers)
    machine = VirtualMachine(artifact, vectors.pages, threads)
    try:
        for number, checked in enumerate(vectors.calls):
            progress("verify", number, len(vectors.calls))
            inputs = _inputs(artifact, checked, vectors.pages)
            replayer = _Replay(artifact.build.calls.get(checked.entry, ()), checked, verdict, dtype)
            with machine.watch(replayer):
                machine.call(checked.entry, inputs)
            if replayer.fault is None and replayer.done < len(replayer.calls):
                replayer.fault = f"the code made {replayer.done} kernel calls, the manifest has {len(replayer.calls)}"
            if replayer.fault is not None:
                where = f"{artifact.path}, {checked.entry}"
                raise DeepZigError(replayer.fault, where, "compile the model again")
        progress("verify", len(vectors.calls), len(vectors.calls))
    finally:
        machine.close()
    return verdict


def check(artifact: Artifact, verdict: Verdict) -> None:
    """Raise the first divergence as an error that names op, layer and kernel."""
    found = verdict.first
    if found is None:
        return
    call = found.call
    layer = "" if call.layer is None else f"layer {call.layer}, "
    raise DeepZigError(
        f"{layer}{call.op} differs by {found.distance:.1e} in {found.entry}, allowed is {verdict.tolerance:.0e}",
        f"{artifact.path}, {artifact.build.code}, kernel {call.kernel} ({call.where})",
        "the kernel is wrong on this machine; compile with another --target and report it",
    )


def _inputs(artifact: Artifact, checked: CheckedCall, pages: int) -> dict[str, Array]:
    """The inputs of a call; kernels believe what they are given, so they are checked as a user's."""
    where = f"{artifact.path / PART}, {checked.entry}"
    entry = artifact.manifest.entry_points.get(checked.entry)
    given = checked.arrays()
    if entry is None or {spec.name for spec in entry.inputs} != given.keys():
        raise DeepZigError("the self-check vectors are of another model", where, "compile the model again")
    if "tokens" in given:
        rows = {name: x.astype(np.int32) for name, x in given.items() if name in RANKS}
        given |= checked_rows(artifact.manifest, pages, rows)
    sizes: dict[str, int] = {}
    for spec in entry.inputs:
        shape = given[spec.name].shape
        fits = len(shape) == len(spec.shape) and all(
            have == (want if isinstance(want, int) else sizes.setdefault(want, have))
            for have, want in zip(shape, spec.shape, strict=True)
        )
        if not fits:
            raise DeepZigError(f"the recorded {spec.name} is {list(shape)}", where, "compile the model again")
    return given


@dataclass
class _Replay:
    """An observer of kernel calls that compares and forces values."""

    calls: tuple[Call, ...]
    checked: CheckedCall
    verdict: Verdict
    halves: str
    done: int = 0
    fault: str | None = None

    def __call__(self, kernel: str, tensors: list[Array], before: bool) -> None:
        """Told of a kernel call; compares after it."""
        if before or self.fault:
            return
        if self.done == len(self.calls) or self.calls[self.done].kernel != kernel:
            self.fault = f"the code calls {kernel} where the manifest has another kernel"
            return
        call = self.calls[self.done]
        self.done += 1
        outputs = tensors[len(tensors) - len(call.values) :]
        for name, tensor in zip(call.values, outputs, strict=True):
            self._compare(call, name, tensor)
        for name, tensor in zip(call.values, outputs, strict=True):
            if name in self.checked.forced:
                self._force(name, tensor, self.checked.forced[name])

    def _compare(self, call: Call, name: str, tensor: Array) -> None:
        if name in self.checked.sketches:
            distance = self.checked.sketches[name].distance(_floats(tensor, self.halves))
            self.verdict.findings.append(Finding(self.checked.entry, call, name, distance))
        for choice in self.checked.choices:
            if name in choice.values:
                wanted = np.array(choice.values[name])
                if wanted.size != tensor.size:
                    self.fault = f"the self-check vectors have another shape for the value {name}"
                    return
                wanted = wanted.reshape(tensor.shape).astype(tensor.dtype)
                distance = _choice_distance(wanted, tensor, choice.unsure)
                self.verdict.findings.append(Finding(self.checked.entry, call, name, distance))
                tensor[...] = wanted

    def _force(self, name: str, tensor: Array, noise: Noise) -> None:
        if tensor.shape != noise.shape or tensor.dtype != np.float32:
            self.fault = f"the self-check vectors have another shape for the value {name}"
            return
        tensor[...] = noise.make()


def _floats(tensor: Array, halves: str) -> Array:
    """A value as f32; of two bytes, which `halves` names, only caches are."""
    if tensor.dtype != np.uint16:
        return tensor
    if halves == "bf16":
        return (tensor.astype(np.uint32) << 16).view(np.float32)
    return tensor.view(np.float16).astype(np.float32)


def _choice_distance(wanted: Array, got: Array, unsure: tuple[int, ...]) -> float:
    """Infinite where a choice differs that does not hang on a rounding; of weights, the largest difference."""
    sure = [row for row in range(len(wanted)) if row not in unsure]
    a, b = wanted[sure], got[sure]
    if a.dtype.kind == "i":
        return 0.0 if np.array_equal(a, b) else math.inf
    worst = float(np.abs(a - b).max(initial=0) / max(np.abs(a).max(initial=0), 1e-30))
    return worst if math.isfinite(worst) else math.inf
