"""Which code of an artifact this machine can run, which it would choose, and why not the others."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from deepzig.artifacts.choice import Choice, choose, find_gpu, obstacle
from deepzig.artifacts.devices import HOST, Device, Gpu
from deepzig.artifacts.machines import Machine
from deepzig.artifacts.manifest import Build, Manifest
from deepzig.errors import DeepZigError


@dataclass(frozen=True)
class BuildFacts:
    """The code for one kind of machine.

    Attributes:
        name: what `--target` called it.
        platform: architecture and system.
        triple: LLVM's name of them.
        device: the kind of device that its kernels run on.
        features: the instruction sets that it needs, and the kinds of GPUs that it has code for.
        code_bytes: the size of the code; none if the artifact does not list it.
        runs: whether this machine can run it.
        chosen: whether the loader would take it.
        why: why it is not chosen; empty if it is.
    """

    name: str
    platform: str
    triple: str
    device: str
    features: tuple[str, ...]
    code_bytes: int | None
    runs: bool
    chosen: bool
    why: str


@dataclass(frozen=True)
class Verdict:
    """Whether the artifact runs here; if not, what is in the way and how to mend it."""

    runs: bool
    what: str
    mend: str


def builds_of(
    manifest: Manifest, machine: Machine, path: Path, device: Device | None = None
) -> tuple[BuildFacts, ...]:  # fmt: skip
    """Every build, as this machine sees it; `device` is where the artifact shall run."""
    try:
        chosen: Choice | None = choose(manifest, machine, path, device)
    except DeepZigError:
        chosen = None
    return tuple(_facts(build, manifest, machine, chosen) for build in manifest.builds)


def _facts(build: Build, manifest: Manifest, machine: Machine, chosen: Choice | None) -> BuildFacts:
    device = chosen.device if chosen is not None and chosen.device.kind == build.device else None
    why = obstacle(build, machine, device)
    runs, taken = not why, chosen is not None and build is chosen.build
    if runs and not taken and chosen is not None:
        same = chosen.device.kind == build.device
        why = f"{chosen.build.name} makes more of this CPU" if same else f"{chosen.build.name} runs on {chosen.device}"
    code = manifest.files.get(build.code)
    size = code.size if code else None
    features = tuple(sorted(build.features))
    return BuildFacts(build.name, build.platform, build.triple, build.device, features, size, runs, taken, why)


def gpu_of(manifest: Manifest, machine: Machine, path: Path, device: Device | None = None) -> Gpu | None:
    """The GPU that the artifact would run on, if it would run on one."""
    try:
        chosen = choose(manifest, machine, path, device)
    except DeepZigError:
        return None
    return None if chosen.device == HOST else find_gpu(chosen.device)


def verdict_of(manifest: Manifest, machine: Machine, path: Path, device: Device | None = None) -> Verdict:
    """Whether the loader would take the artifact here, or for a device, its parts unseen."""
    try:
        chosen = choose(manifest, machine, path, device)
    except DeepZigError as error:
        return Verdict(False, error.what, error.hint)
    have, want = version("apache-tvm-ffi"), str(manifest.abi["tvm_ffi"])
    if chosen.build.runtime and have != want:
        what = f"the artifact needs apache-tvm-ffi {want}, {have} is installed"
        return Verdict(False, what, f"pip install apache-tvm-ffi=={want}")
    where = "" if chosen.device == HOST else f" on {chosen.device}"
    return Verdict(True, f"build {chosen.build.name}{where}", "")
