"""What was measured, and what that is of what the machine can do."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Any

from deepzig.artifacts.devices import HOST, Gpu
from deepzig.artifacts.manifest import Manifest
from deepzig.runtime.child import Usage
from deepzig.runtime.machine import Memory

from .cases import Case, Decode, Prefill, cache_bytes


@dataclass(frozen=True)
class Setting:
    """What was measured where.

    Attributes:
        artifact: its folder.
        build: the code that was chosen.
        threads: of the kernels.
        tokens: steps of a decode.
        cpu: name of the processor.
        cores: CPUs that the process may use.
        memory: of the machine, before anything was loaded.
        gpu: what the kernels ran on, if it was no CPU.
        skipped: what was not measured, and why.
    """

    artifact: str
    build: str
    threads: int
    tokens: int
    cpu: str
    cores: int
    memory: Memory
    skipped: tuple[str, ...]
    gpu: Gpu | None = None


@dataclass
class Samples:
    """One value for each round that was completed or begun.

    Attributes:
        seconds: case -> how long it took.
        bandwidth: bytes a second that the machine read, or that the memory of its GPU can give.
        gemm: operations a second of an f32 matrix product.
        first: a process from its start to its first token.
    """

    seconds: dict[Case, list[float]] = field(default_factory=dict)
    bandwidth: list[float] = field(default_factory=list)
    gemm: list[float] = field(default_factory=list)
    first: list[Usage] = field(default_factory=list)


@dataclass(frozen=True)
class Speed:
    """The median of a case.

    Attributes:
        case: what was measured.
        seconds: of every round.
        tokens_per_second: of all sequences together.
        share: of what the machine can do, see `decode_bytes` and `prefill_flops`; None where that is not known.
    """

    case: Case
    seconds: tuple[float, ...]
    tokens_per_second: float
    share: float | None

    def to_json(self) -> dict[str, Any]:
        """Its entry in the object that `--json` prints."""
        name = "share_of_gemm" if isinstance(self.case, Prefill) else "share_of_bandwidth"
        return {
            **vars(self.case), "tokens_per_second": self.tokens_per_second, name: self.share, "seconds": self.seconds
        }  # fmt: skip


@dataclass(frozen=True)
class Results:
    """All of it; medians of rounds, None for what was not reached."""

    setting: Setting
    speeds: tuple[Speed, ...]
    bandwidth: float | None
    gemm: float | None
    first_token: float | None
    peak_bytes: int | None
    peak_private_bytes: int | None
    rounds: int
    complete: bool

    def to_json(self) -> dict[str, Any]:
        """The object that `--json` prints: bytes, seconds and operations, no other units."""
        s = self.setting
        return {
            "artifact": s.artifact, "build": s.build, "threads": s.threads, "tokens": s.tokens, "rounds": self.rounds,
            "complete": self.complete,
            "machine": {
                "cpu": s.cpu, "cores": s.cores, "ram_bytes": s.memory.total, "available_bytes": s.memory.available,
                "bandwidth_bytes_per_second": self.bandwidth, "gemm_flops_per_second": self.gemm,
                "device": str(HOST if s.gpu is None else s.gpu.device), "gpu": None if s.gpu is None else s.gpu.name,
                "gpu_memory_bytes": None if s.gpu is None else s.gpu.memory,
            },
            "prefill": [x.to_json() for x in self.speeds if isinstance(x.case, Prefill)],
            "decode": [x.to_json() for x in self.speeds if isinstance(x.case, Decode)],
            "first_token_seconds": self.first_token, "peak_bytes": self.peak_bytes,
            "peak_private_bytes": self.peak_private_bytes, "skipped": list(s.skipped),
        }  # fmt: skip


def decode_bytes(manifest: Manifest, case: Decode, tokens: int) -> int | None:
    """Bytes that a decode of so many tokens reads from memory: at each step weights, and the cache up to its token.

    None for more than one sequence: how many experts they read together hangs on their texts. None, too, where the
    artifact does not tell what one token reads.
    """
    weights = manifest.memory.get("active_bytes_per_token")
    if case.batch > 1 or weights is None:
        return None
    cached = tokens * case.depth + tokens * (tokens + 1) // 2
    return weights * tokens + cache_bytes(manifest, "decode") * cached


def prefill_flops(manifest: Manifest, case: Prefill) -> int | None:
    """Floating-point operations of reading a prompt, two for each multiplication.

    Every token meets its active parameters, except that only the last one meets the output head; and in every layer and
    head the keys and values of the tokens up to itself, in the un-absorbed form (DeepSeek-V2 report, section 2.1). None
    where the artifact does not tell the sizes.
    """
    active, model = manifest.memory.get("active_params_per_token"), manifest.model
    names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "qk_head_dim", "v_head_dim")
    if active is None or not all(isinstance(model.get(name), int) for name in names):
        return None
    vocab, hidden, layers, heads, key, value = (int(model[name]) for name in names)
    head, count = vocab * hidden, case.prompt
    pairs = count * (count + 1) // 2
    return 2 * ((active - head) * count + head + layers * heads * (key + value) * pairs)


def _median(values: list[float]) -> float | None:
    return statistics.median(values) if values else None


def _share(work: int | None, seconds: float, limit: float | None) -> float | None:
    """What the work in that time is of the limit; None where one is not known, or the manifest's sizes are absurd."""
    if work is None or limit is None:
        return None
    try:
        return work / seconds / limit
    except OverflowError:
        return None


def results(manifest: Manifest, setting: Setting, samples: Samples, rounds: int, complete: bool = True) -> Results:
    """Medians and shares of what was measured."""
    bandwidth, gemm = _median(samples.bandwidth), _median(samples.gemm)
    speeds = []
    for case, seconds in samples.seconds.items():
        if isinstance(case, Prefill):
            tokens, work, limit = case.prompt, prefill_flops(manifest, case), gemm
        else:
            tokens, limit = case.batch * setting.tokens, bandwidth
            work = decode_bytes(manifest, case, setting.tokens)
        median = statistics.median(seconds)
        speeds.append(Speed(case, tuple(seconds), tokens / median, _share(work, median, limit)))
    peaks = [[getattr(u, name) for u in samples.first] for name in ("peak_bytes", "peak_private_bytes")]
    peak, private = (max((p for p in each if p is not None), default=None) for each in peaks)
    firsts = [u.first_output_seconds for u in samples.first if u.first_output_seconds is not None]
    return Results(
        setting, tuple(speeds), bandwidth, gemm, _median(firsts), peak, private, rounds, complete
    )  # fmt: skip
