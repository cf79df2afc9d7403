"""Replaying an artifact's self-check vectors on the machine where it stands."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from deepzig.artifacts.cache_rows import decode, encode, row_bytes
from deepzig.artifacts.choice import obstacle
from deepzig.artifacts.devices import ROUNDING, Device
from deepzig.artifacts.machines import BF16_ROWS, Machine
from deepzig.artifacts.manifest import Build, Call
from deepzig.artifacts.reader import Artifact
from deepzig.artifacts.selfcheck import PART, CheckedCall, SelfCheck
from deepzig.errors import DeepZigError

from .executor import open_executor
from .rows import RANKS, checked_rows
from .tensors import Tensor

Array = npt.NDArray[Any]

TOLERANCE = {np.dtype(np.float32): 4e-5, np.dtype(np.int32): 0.0}
"""Element type of a value -> its largest distance from the recorded one, relative to its norm. Weights are exact in
every type and sums are f32 everywhere: a sum of 18432 products, DeepSeek-V3's longest, was 7e-6 off, those of 63 small
models at most 1.4e-6."""

ROUNDED = {"f16": 4e-4, "bf16": 3e-3, "i8": 1e-2}
"""The same for a cache, by its type: a value between two of 11 or 8 bits may become the other one of them. The same
models' were at most 3.2e-5 and 1.4e-4 off. Of 8 bits in groups the step is 1/127 of the largest of 64."""

CODED = 1e-2
"""The same for a float where matrices are quantised: the rows that they multiply are rounded to 8 bits, and one of the
codes may become its neighbour, 1/127 of the largest of 64."""

HALVED = 2e-2
"""The same where rows are rounded to bf16, by 1/512 at most, and the interpreter's are not. Distances are estimates:
those of a small model were 6e-3 at most, 2e-3 in the middle. Where they become 8 bits after, as attended latents do, it
was 1.1e-2 at most, and there both are allowed."""

ROWS = {"bf16": HALVED, "f16": HALVED / 8}
"""The same by the type of matrices that rows are rounded to."""

CACHED = (np.dtype(np.uint16), np.dtype(np.int8))
"""Element types that only caches have."""

IN_WORDS = {"bf16": np.uint16, "f16": np.uint16, "i8": np.int8}
"""Type of a cache -> what lies in the words of rows that are made of those."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Finding:
    """How far one value is from what was recorded.

    Attributes:
        entry: the entry point.
        call: the kernel call that made it.
        kernels: the symbols of that kernel, and of those before it that are parts of the same op.
        value: its name in the fused graph.
        distance: relative to the value's norm; infinite where it is not a number, or another choice.
        allowed: the largest distance that is.
    """

    entry: str
    call: Call
    kernels: tuple[str, ...]
    value: str
    distance: float
    allowed: float

    @property
    def ok(self) -> bool:
        """Whether the distance is allowed."""
        return self.distance <= self.allowed


@dataclass
class Verdict:
    """What a replay found.

    Attributes:
        layers: the layers that were checked.
        findings: one for each value that was compared, in the order of the calls.
    """

    layers: tuple[int, ...]
    findings: list[Finding] = field(default_factory=list)

    @property
    def wrong(self) -> list[Finding]:
        """What is too far off, in the order of the calls."""
        return [f for f in self.findings if not f.ok]

    @property
    def worst(self) -> Finding:
        """The value that is farthest off, measured by what is allowed."""
        return max(self.findings, key=lambda f: (not f.ok, f.distance / f.allowed if f.allowed else 0.0))


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
    cache = _cache_type(artifact)
    verdict = Verdict(vectors.layers)
    executor = open_executor(artifact, vectors.pages, threads)
    try:
        for number, checked in enumerate(vectors.calls):
            progress(f"verify {checked.entry}", number, len(vectors.calls))
            inputs = _inputs(artifact, checked, vectors.pages)
            calls = artifact.build.calls.get(checked.entry, ())
            replayer = _Replay(calls, checked, verdict, cache, floats_allowed(artifact.build, artifact.manifest.model))
            with executor.watch(replayer):
                executor.call(checked.entry, inputs)
            if fault := replayer.fault or replayer.missing():
                raise DeepZigError(fault, f"{artifact.path}, {checked.entry}", "compile the model again")
        progress("verify", len(vectors.calls), len(vectors.calls))
    finally:
        executor.close()
    return verdict


def _cache_type(artifact: Artifact) -> str:
    """The type of the elements of caches, which may lie in words."""
    manifest = artifact.manifest
    dtype = manifest.cache[0].dtype if manifest.cache else "f32"
    named = str(manifest.model.get("cache"))
    return {"q8": "i8"}.get(named, named) if dtype == "u32" else dtype


def floats_allowed(build: Build, model: Mapping[str, Any]) -> float:
    """The largest distance of a float that a build computes for a model, which the manifest tells of."""
    quantised, dtype = model.get("quant") is not None, str(model.get("dtype"))
    allowed = CODED if quantised else TOLERANCE[np.dtype(np.float32)]
    if build.device in ROUNDING:
        return max(allowed, HALVED if quantised else ROWS.get(dtype, 0.0))
    rounded = "bf16" in (dtype, model.get("cache")) and build.features & BF16_ROWS
    return HALVED + (CODED if quantised else 0.0) if rounded else allowed


def check(artifact: Artifact, verdict: Verdict) -> None:
    """Raise the first divergence as an error that names op, layer and kernel."""
    if not verdict.wrong:
        return
    found, *others = verdict.wrong
    call = found.call
    layer = "" if call.layer is None else f"layer {call.layer}, "
    more = f"; {len(others)} more values differ" if others else ""
    raise DeepZigError(
        f"{layer}{call.op} differs by {found.distance:.1e} in {found.entry}, allowed is {found.allowed:.0e}{more}",
        f"{artifact.path}, {artifact.build.code}, kernel {', '.join(found.kernels)} ({call.where})",
        "the kernel is wrong on this machine; compile with another --target and report it",
    )


def runnable(artifact: Artifact, machine: Machine) -> list[Artifact]:
    """The artifact with each of its builds that a machine can run, on its device or the first of another kind."""
    found = []
    for build in artifact.manifest.builds:
        device = artifact.device if artifact.device.kind == build.device else Device(build.device)
        if not obstacle(build, machine, device):
            found.append(replace(artifact, build=build, device=device))
    return found


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
    cache: str
    floats: float
    done: int = 0
    fault: str | None = None
    kernels: tuple[str, ...] = ()
    compared: set[str] = field(default_factory=set)

    def __call__(self, kernel: str, tensors: list[Tensor], before: bool) -> None:
        """Told of a kernel call; compares and forces after it."""
        if self.fault:
            return
        if self.done == len(self.calls) or self.calls[self.done].kernel != kernel:
            self.fault = f"the code calls {kernel} where the manifest has another kernel"
            return
        call = self.calls[self.done]
        outputs = dict(zip(call.values, tensors[len(tensors) - len(call.values) :], strict=True))
        if before:
            # of what a call writes a part of, the rest is there
            for name in () if call.partial else outputs.keys() & self.checked.forced.keys():
                outputs[name][...] = 0  # nothing is right because it was there before
            return
        self.done += 1
        self.kernels = (*self.kernels, kernel)
        for name, tensor in outputs.items():
            if name:
                values = self._elements(np.asarray(tensor))  # a copy of what lies on a device
                self._compare(call, name, values)
                if name in self.checked.forced and self._force(name, values, self.checked.forced[name].make()):
                    tensor[...] = values.view(tensor.dtype)
        if any(call.values):
            self.kernels = ()

    def missing(self) -> str | None:
        """What the code did not do, once it ran."""
        if self.done < len(self.calls):
            return f"the code made {self.done} kernel calls, the manifest has {len(self.calls)}"
        wanted = [*self.checked.sketches, *(name for choice in self.checked.choices for name in choice.values)]
        lost = next((name for name in wanted if name not in self.compared), None)
        return None if lost is None else f"the code does not compute the recorded value {lost}"

    def _elements(self, tensor: Array) -> Array:
        """What lies in a tensor of words, which only caches are; others as they are."""
        return tensor.view(IN_WORDS[self.cache]) if tensor.dtype == np.uint32 and self.cache in IN_WORDS else tensor

    def _compare(self, call: Call, name: str, tensor: Array) -> None:
        allowed = ROUNDED[self.cache] if tensor.dtype in CACHED else TOLERANCE[tensor.dtype]
        if tensor.dtype == np.float32:
            allowed = self.floats
        distance = None
        if name in self.checked.sketches:
            sketch = self.checked.sketches[name]
            distance = sketch.distance(_floats(tensor, self.cache, sketch.shape[-1] if sketch.shape else 0))
        for choice in self.checked.choices:
            if name in choice.values:
                wanted = np.array(choice.values[name])
                if wanted.size != tensor.size:
                    self.fault = f"the self-check vectors have another shape for the value {name}"
                    return
                wanted = wanted.reshape(tensor.shape).astype(tensor.dtype)
                distance = _choice_distance(wanted, tensor, choice.unsure)
        if distance is not None:
            self.compared.add(name)
            self.verdict.findings.append(Finding(self.checked.entry, call, self.kernels, name, distance, allowed))

    def _force(self, name: str, tensor: Array, values: Array) -> bool:
        """Replace a value, padding apart; whether it could be done."""
        if tensor.dtype == np.int8 and tensor.shape == (*values.shape[:-1], row_bytes(values.shape[-1])):
            tensor[...] = encode(values)
            return True
        part = tensor[tuple(map(slice, values.shape))] if tensor.ndim == values.ndim else tensor
        if part.shape != values.shape or (values.dtype == np.int32) != (tensor.dtype == np.int32):
            self.fault = f"the self-check vectors have another shape for the value {name}"
            return False
        part[...] = values if tensor.dtype == values.dtype else _halves(values, self.cache)
        return True


def _floats(tensor: Array, cache: str, width: int) -> Array:
    """A value as f32; of the types CACHED, which `cache` names, only caches are. Rows have `width` columns."""
    if tensor.dtype not in CACHED:
        return tensor
    if tensor.dtype == np.int8:
        return decode(tensor, width) if tensor.shape[-1] == row_bytes(width) else tensor
    if cache == "bf16":
        return (tensor.astype(np.uint32) << 16).view(np.float32)
    return tensor.view(np.float16).astype(np.float32)


def _halves(values: Array, halves: str) -> Array:
    """f32 values that the type `halves` holds, as its bits."""
    if halves == "bf16":
        return (values.view(np.uint32) >> 16).astype(np.uint16)
    return values.astype(np.float16).view(np.uint16)


def _choice_distance(wanted: Array, got: Array, unsure: tuple[int, ...]) -> float:
    """Infinite where a choice differs that does not hang on a rounding; of weights, the largest difference."""
    sure = [row for row in range(len(wanted)) if row not in unsure]
    a, b = wanted[sure], got[sure]
    if a.dtype.kind == "i":
        return 0.0 if np.array_equal(a, b) else math.inf
    worst = float(np.abs(a - b).max(initial=0) / max(np.abs(a).max(initial=0), 1e-30))
    return worst if math.isfinite(worst) else math.inf
