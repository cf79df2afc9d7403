"""Which code of an artifact this machine can run, which it would choose, and why not the others."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from deepzig.artifacts.machines import Machine
from deepzig.artifacts.manifest import Build, Manifest
from deepzig.artifacts.reader import choose_build
from deepzig.errors import DeepZigError


@dataclass(frozen=True)
class BuildFacts:
    """The code for one kind of machine.

    Attributes:
        name: what `--target` called it.
        platform: architecture and system.
        triple: LLVM's name of them.
        features: the instruction sets that it needs.
        code_bytes: the size of the code; none if the artifact does not list it.
        runs: whether this machine can run it.
        chosen: whether the loader would take it.
        why: why it is not chosen; empty if it is.
    """

    name: str
    platform: str
    triple: str
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


def builds_of(manifest: Manifest, machine: Machine, path: Path) -> tuple[BuildFacts, ...]:
    """Every build, as this machine sees it."""
    try:
        chosen: Build | None = choose_build(manifest, machine, path)
    except DeepZigError:
        chosen = None
    return tuple(_facts(build, manifest, machine, chosen) for build in manifest.builds)


def _facts(build: Build, manifest: Manifest, machine: Machine, chosen: Build | None) -> BuildFacts:
    lacks = sorted(build.features - machine.features)
    why = ""
    if build.platform != machine.platform:
        why = f"this machine is {machine.platform}"
    elif lacks:
        why = f"this CPU lacks {', '.join(lacks)}"
    elif build is not chosen and chosen is not None:
        why = f"{chosen.name} makes more of this CPU"
    code = manifest.files.get(build.code)
    runs = build.platform == machine.platform and not lacks
    features = tuple(sorted(build.features))
    size = code.size if code else None
    return BuildFacts(build.name, build.platform, build.triple, features, size, runs, build is chosen, why)


def verdict_of(manifest: Manifest, machine: Machine, path: Path) -> Verdict:
    """Whether the loader would take the artifact here, its parts unseen."""
    try:
        chosen = choose_build(manifest, machine, path)
    except DeepZigError as error:
        return Verdict(False, error.what, error.hint)
    have, want = version("apache-tvm-ffi"), str(manifest.abi["tvm_ffi"])
    if have != want:
        what = f"the artifact needs apache-tvm-ffi {want}, {have} is installed"
        return Verdict(False, what, f"pip install apache-tvm-ffi=={want}")
    return Verdict(True, f"build {chosen.name}", "")
