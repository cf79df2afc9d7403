"""What an artifact takes of a machine's memory, and what the machine's bandwidth makes possible."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from deepzig.artifacts.consistency import ITEM_BYTES
from deepzig.artifacts.devices import HOST, Device
from deepzig.artifacts.manifest import Manifest, TensorSpec

PROCESS_BYTES = 64 << 20
"""Python, numpy, TVM's runtime and the tokenizer: 45 to 60 MiB measured, of which a third can be shared."""

DEPTHS = (0, 1024, 4096, 16384, 65536, 262144, 1048576)
"""Tokens before the one that is predicted."""

MAIN = "decode"


@dataclass(frozen=True)
class Memory:
    """Bytes, unless it says otherwise.

    Attributes:
        device: whose memory it is.
        mapped: whether weights are used where they lie in the artifact; else they are copied.
        weights: all weights.
        weights_by_kind: the same by what they are for; empty if the artifact does not tell.
        cache_per_token: of all layers together.
        cache_full_context: for one sequence as long as the model allows.
        workspace: intermediate results of a call at the artifact's bounds, with `threads` threads.
        process: the Python process itself; 0 in the memory of a GPU.
        threads: threads that the kernels would have here.
        ram: the memory to fit in; none if it is not known.
        full_context: tokens; the longest sequence that the model allows.
        largest_context: tokens; the longest sequence that fits in `ram`, 0 if not even the weights do.
        cache_tokens: tokens of all sequences together that fit in `ram`.
    """

    device: str
    mapped: bool
    weights: int
    weights_by_kind: Mapping[str, int]
    cache_per_token: int
    cache_full_context: int
    workspace: int
    process: int
    threads: int
    ram: int | None
    full_context: int
    largest_context: int | None
    cache_tokens: int | None


def memory_of(
    manifest: Manifest, ram: int | None, threads: int, device: Device = HOST, mapped: bool = True
) -> Memory:  # fmt: skip
    """The memory plan for a machine, or a device of it, with `ram` bytes."""
    told, positions = manifest.memory, manifest.bounds.positions
    weights, per_token = told.get("weights_bytes", 0), told.get("cache_bytes_per_token", 0)
    workspace = told.get("workspace_bytes", 0) + threads * told.get("workspace_bytes_per_thread", 0)
    process = PROCESS_BYTES if device == HOST else 0
    fits = None
    if ram is not None:
        page = manifest.bounds.page_size * per_token
        left = max(ram - weights - workspace - process, 0)
        fits = left // page * manifest.bounds.page_size if page else positions
    suffix = "_bytes"
    sums = ("weights_bytes", "workspace_bytes")
    return Memory(
        device=str(device),
        mapped=mapped and device == HOST,
        weights=weights,
        weights_by_kind={
            name.removesuffix(suffix): size
            for name, size in told.items()
            if name.endswith(suffix) and name not in sums and size
        },
        cache_per_token=per_token,
        cache_full_context=per_token * positions,
        workspace=workspace,
        process=process,
        threads=threads,
        ram=ram,
        full_context=positions,
        largest_context=None if fits is None else min(fits, positions),
        cache_tokens=fits,
    )


@dataclass(frozen=True)
class Speed:
    """The most tokens a second after `depth` tokens, for one sequence."""

    depth: int
    tokens_per_second: float


@dataclass(frozen=True)
class Reading:
    """What a decoded token makes the machine read, and what follows for its speed.

    Attributes:
        active_bytes: of the weights.
        active_params: elements of the weights that work on a token; two operations each.
        cache_per_token: of the cache, for each token before.
        bandwidth: bytes a second that the machine reads; none if it was not measured.
        speeds: upper limits: bandwidth / (active_bytes + depth * cache_per_token). A model that fits in the CPU's
            caches can be faster.
    """

    active_bytes: int
    active_params: int
    cache_per_token: int
    bandwidth: float | None
    speeds: tuple[Speed, ...]


def reading_of(manifest: Manifest, bandwidth: float | None) -> Reading | None:
    """What decoding reads; none if the artifact does not tell."""
    active = manifest.memory.get("active_bytes_per_token", 0)
    if not active:
        return None
    used = set(manifest.entry_points[MAIN].states)
    per_token = sum(row_bytes(cache) for cache in manifest.cache if cache.name in used)
    positions = manifest.bounds.positions
    depths = (*(depth for depth in DEPTHS if depth < positions), positions)
    speeds = tuple(Speed(depth, bandwidth / (active + depth * per_token)) for depth in depths) if bandwidth else ()
    return Reading(active, manifest.memory.get("active_params_per_token", 0), per_token, bandwidth, speeds)


def row_bytes(cache: TensorSpec) -> int:
    """Bytes of one token in a cache, whose last dimension is its width."""
    width = cache.shape[-1] if cache.shape else 0
    return ITEM_BYTES[cache.dtype] * (width if isinstance(width, int) else 0)
