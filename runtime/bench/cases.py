"""What a benchmark measures, and what of it fits the artifact and the machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deepzig.artifacts.manifest import Manifest
from deepzig.errors import DeepZigError
from deepzig.runtime.inspect.memory import row_bytes


@dataclass(frozen=True)
class Prefill:
    """Reading a prompt of so many tokens into an empty cache."""

    prompt: int

    def __str__(self) -> str:
        return f"prefill {self.prompt}"


@dataclass(frozen=True)
class Decode:
    """One token a step for each of `batch` sequences that have `depth` tokens in the cache when it begins."""

    batch: int
    depth: int

    def __str__(self) -> str:
        return f"decode batch {self.batch} depth {self.depth}"


Case = Prefill | Decode


@dataclass(frozen=True)
class Plan:
    """What will be measured.

    Attributes:
        cases: what to run, prefills first.
        tokens: steps of a decode.
        contexts: for each sequence how many tokens it has to have in the cache before the first decode.
        rooms: for each sequence the most tokens that it will ever have there.
        skipped: what does not fit, and why.
    """

    cases: tuple[Case, ...]
    tokens: int
    contexts: tuple[int, ...]
    rooms: tuple[int, ...]
    skipped: tuple[str, ...]

    def cache_tokens(self, page_size: int) -> int:
        """The tokens that the cache has to hold, whole pages for each sequence."""
        return sum(-(-room // page_size) * page_size for room in self.rooms)


def cache_bytes(manifest: Manifest, entry: str | None = None) -> int:
    """Bytes of a token in all caches, or in those that an entry point reads."""
    names = None if entry is None else manifest.entry_points[entry].states
    return sum(row_bytes(spec) for spec in manifest.cache if names is None or spec.name in names)


def make_plan(
    manifest: Manifest, prompts: Sequence[int], batches: Sequence[int], depths: Sequence[int], tokens: int,
    memory: int | None,
) -> Plan:  # fmt: skip
    """What of the wanted cases fits.

    Args:
        manifest: of the artifact.
        prompts: lengths of prompts to read.
        batches: numbers of sequences to decode.
        depths: tokens in the cache before a decode, each with every batch.
        tokens: steps of a decode.
        memory: the bytes that the cache may take; None for any number.

    Raises:
        DeepZigError: nothing fits.
    """
    context, most = manifest.bounds.positions, manifest.bounds.batch
    page, each = manifest.bounds.page_size, cache_bytes(manifest)
    skipped: list[str] = []

    def fits(case: Case, batch: int, room: int) -> bool:
        size = batch * -(-room // page) * page * each
        why = None
        if room > context:
            why = f"{room} tokens are more than the context of {context}"
        elif batch > most:
            why = f"the artifact takes at most {most} sequences"
        elif memory is not None and size > memory:
            why = f"its cache takes {size / 1e9:.1f} GB, {memory / 1e9:.1f} GB are available"
        if why is not None:
            skipped.append(f"{case}: {why}")
        return why is None

    prefills = [case for case in map(Prefill, dict.fromkeys(prompts)) if fits(case, 1, case.prompt)]
    wanted = [Decode(batch, depth) for depth in dict.fromkeys(depths) for batch in dict.fromkeys(batches)]
    decodes = [case for case in wanted if fits(case, case.batch, case.depth + tokens)]
    if not prefills and not decodes:
        raise DeepZigError(f"nothing to measure fits: {skipped[0]}", "--batch, --depth, --prompt", "ask for less")
    contexts = [
        max(case.depth for case in decodes if case.batch > number)
        for number in range(max((case.batch for case in decodes), default=0))
    ]
    rooms = [depth + tokens for depth in contexts] or [0]
    rooms[0] = max([rooms[0], *(case.prompt for case in prefills)])
    return Plan((*prefills, *decodes), tokens, tuple(contexts), tuple(rooms), tuple(skipped))
