"""Everything that `deepzig inspect` has to tell; `--json` prints it, text and page are made of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deepzig.artifacts.checks import FileEntry
from deepzig.artifacts.cpu_features import this_machine
from deepzig.artifacts.devices import HOST, Device
from deepzig.artifacts.graphs import Graphs, read_graphs
from deepzig.artifacts.machines import WASM, WASM_BYTES, fitting
from deepzig.artifacts.manifest import FORMAT, EntryPoint, TensorSpec
from deepzig.artifacts.reader import read_manifest
from deepzig.runtime.library import default_threads
from deepzig.runtime.machine import memory

from .builds import BuildFacts, Verdict, builds_of, gpu_of, verdict_of
from .kernels import Kernel, LayerKind, kernels_of, layer_kinds, node_kernels
from .memory import Memory, Reading, memory_of, reading_of


@dataclass(frozen=True)
class Here:
    """This machine.

    Attributes:
        platform: architecture and system.
        features: its instruction sets.
        kind: the most demanding kind of machine that it is of.
        gpu: the name of the GPU that the artifact would run on; none if it would not.
    """

    platform: str
    features: tuple[str, ...]
    kind: str | None
    gpu: str | None


@dataclass(frozen=True)
class Signature:
    """An entry point.

    Attributes:
        inputs: such as `tokens: i32[n]`.
        outputs: such as `logits: f32[r, 512]`.
        states: how many caches it reads and writes.
        weights: how many weights it reads.
        kernel_calls: how many kernels it calls.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    states: int
    weights: int
    kernel_calls: int


@dataclass(frozen=True)
class Drawing:
    """The graphs, and the kernels of each node as `node_kernels` gives them."""

    graphs: Graphs
    kernels: Mapping[str, Mapping[int, list[list[str]]]]


@dataclass(frozen=True)
class Facts:
    """What is known of an artifact.

    Attributes:
        path: its folder, as it was given.
        format: the version of its format.
        created_by: what made it.
        model: the manifest's `model`.
        abi: the manifest's `abi`.
        bounds: the manifest's `bounds`.
        here: this machine.
        verdict: whether the artifact runs here.
        builds: its code, for each kind of machine.
        memory: what it takes of memory.
        reading: what a token reads, and the speed that allows; none if the artifact does not tell.
        layers: kinds of layers.
        kernels: those of the build that runs here, or of the first.
        kernels_of: the name of that build.
        entry_points: name -> signature.
        passes: what the compiler did.
        files: part -> size and SHA-256.
    """

    path: str
    format: int
    created_by: str
    model: Mapping[str, Any]
    abi: Mapping[str, Any]
    bounds: Mapping[str, int]
    here: Here
    verdict: Verdict
    builds: tuple[BuildFacts, ...]
    memory: Memory
    reading: Reading | None
    layers: tuple[LayerKind, ...]
    kernels: tuple[Kernel, ...]
    kernels_of: str
    entry_points: Mapping[str, Signature]
    passes: tuple[str, ...]
    files: Mapping[str, FileEntry]

    def to_json(self) -> dict[str, Any]:
        """The object that `--json` prints."""
        return asdict(self)


def inspect_artifact(
    path: Path, ram: int | None = None, measure: Callable[[], float] | None = None, device: Device | None = None
) -> tuple[Facts, Drawing | None]:  # fmt: skip
    """What is known of the artifact in the folder `path`, on this machine or any other; no code of it is loaded.

    Args:
        path: the folder.
        ram: bytes of memory to plan for; this machine's, or its GPU's, if not given.
        measure: gives the bytes a second that the machine reads; without it no speed is predicted. What a GPU reads is
            what its memory can give.
        device: where the artifact shall run; by default where it can, on a GPU before the CPU.

    Returns:
        The facts, and the graphs if the artifact carries them.

    Raises:
        DeepZigError: no artifact, or one that can't be believed.
    """
    manifest, machine = read_manifest(path), this_machine()
    graphs = read_graphs(path, manifest)
    builds = builds_of(manifest, machine, path, device)
    gpu = gpu_of(manifest, machine, path, device)
    if gpu is not None:
        ram = gpu.memory if ram is None else ram
        bandwidth = gpu.bandwidth
    else:
        bandwidth = measure() if measure else None
    shown = next((n for n, build in enumerate(builds) if build.chosen), 0)
    build = manifest.builds[shown]
    kinds = layer_kinds(build)
    room = memory().total if ram is None else ram
    if build.platform == WASM:
        room = WASM_BYTES if room is None else min(room, WASM_BYTES)
    facts = Facts(
        path=str(path),
        format=FORMAT,
        created_by=manifest.created_by,
        model=_plain(manifest.model),
        abi=_plain(manifest.abi),
        bounds=vars(manifest.bounds),
        here=Here(machine.platform, tuple(sorted(machine.features)), fitting(machine), gpu.name if gpu else None),
        verdict=verdict_of(manifest, machine, path, device),
        builds=builds,
        memory=memory_of(
            manifest, room, 1 if build.plan else default_threads(), HOST if gpu is None else gpu.device, not build.plan
        ),
        reading=reading_of(manifest, bandwidth),
        layers=kinds,
        kernels=kernels_of(build, kinds),
        kernels_of=build.name,
        entry_points={
            name: _signature(point, len(build.calls.get(name, ()))) for name, point in manifest.entry_points.items()
        },
        passes=manifest.passes,
        files=manifest.files,
    )
    return facts, None if graphs is None else Drawing(graphs, node_kernels(build, graphs))


def _plain(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields with what is neither a text, a number nor a list of those as text: any JSON may stand there."""

    def fits(value: Any) -> bool:
        return value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))

    return {
        name: value if fits(value) or (isinstance(value, list) and all(map(fits, value))) else repr(value)
        for name, value in fields.items()
    }


def _signature(point: EntryPoint, calls: int) -> Signature:
    inputs, outputs = (tuple(map(_typed, group)) for group in (point.inputs, point.outputs))
    return Signature(inputs, outputs, len(point.states), len(point.weights), calls)


def _typed(tensor: TensorSpec) -> str:
    return f"{tensor.name}: {tensor.dtype}[{', '.join(map(str, tensor.shape))}]"
