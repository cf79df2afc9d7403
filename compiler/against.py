"""Checking an artifact's self-check vectors against the checkpoint that it should be made of."""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path

import numpy as np

from deepzig.artifacts.manifest import Manifest
from deepzig.artifacts.selfcheck import CheckedCall, SelfCheck
from deepzig.errors import DeepZigError

from .driver import fuse
from .options import Options
from .selfcheck import record
from .trace import Bounds
from .weights import WeightSource

ALLOWED, ROUNDED = 1e-4, 3e-3
"""How far a recorded value may be from one computed again, relative to its norm: numpy sums as its BLAS likes. Caches
of two-byte types may be farther, where a value between two becomes the other one."""


def recompute(manifest: Manifest, recorded: SelfCheck, checkpoint: Path) -> SelfCheck:
    """The vectors that a checkpoint gives.

    Args:
        manifest: of the artifact.
        recorded: its vectors.
        checkpoint: as for `compile_model`.

    Raises:
        DeepZigError: the checkpoint is of another model, or gives other vectors.
    """
    given = {k: v for k, v in vars(manifest.bounds).items() if k != "positions"}
    inputs = {spec.name for spec in manifest.entry_points["prefill"].inputs}
    dtype, quant, kept = str(manifest.model.get("dtype")), manifest.model.get("quant"), manifest.model.get("cache")
    options = Options(
        manifest.builds[0].name, dtype, quant, kept, Bounds(**given), debug_route="route" in inputs
    )  # fmt: skip
    source, module = fuse(checkpoint, options)
    wanted = {"dtype": dtype, **source.config.summary()}
    for key, value in wanted.items():
        if manifest.model.get(key) != value:
            what = f"the artifact has {key} {manifest.model.get(key)!r}, the checkpoint {value!r}"
            raise DeepZigError(what, str(checkpoint), "name the checkpoint that the artifact was compiled from")
    weights = WeightSource(module, source.checkpoint)
    fresh = record(module, weights, source.config.max_position_embeddings, Bounds(**given), recorded.layers)
    if _names(fresh) != _names(recorded):
        what = "the artifact was compiled with other passes, so its values can't be told from the checkpoint"
        raise DeepZigError(what, str(checkpoint), "compile the model again, with this DeepZig and without --fuse-limit")
    for ours, theirs in zip(fresh.calls, recorded.calls, strict=True):
        nodes = module.graph(ours.entry).nodes
        rounded = {v.name for node in nodes for v in node.outputs if v.type.dtype in ("bf16", "f16", "q8")}
        if value := _difference(ours, theirs, rounded):
            calls = [c for build in manifest.builds for c in build.calls.get(ours.entry, ()) if value in c.values]
            place = f"{calls[0].op} at {calls[0].where}, layer {calls[0].layer}" if calls else f"value {value}"
            raise DeepZigError(
                f"the checkpoint gives other values than the artifact recorded, first in {ours.entry}: {place}",
                str(checkpoint),
                "name the checkpoint that the artifact was compiled from",
            )
    return fresh


def _names(vectors: SelfCheck) -> list[tuple[object, ...]]:
    """What is recorded, without the numbers."""
    return [
        (call.entry, {name: s.shape for name, s in call.sketches.items()}, [list(c.values) for c in call.choices])
        for call in vectors.calls
    ]


def _difference(ours: CheckedCall, theirs: CheckedCall, rounded: Container[str]) -> str | None:
    """The first value that differs; those in `rounded` are of a two-byte type."""
    for name, sketch in ours.sketches.items():
        other = theirs.sketches[name]
        numbers = np.array([sketch.norm, *sketch.projections]) - [other.norm, *other.projections]
        allowed = ROUNDED if name in rounded else ALLOWED
        if not np.abs(numbers).max() <= allowed * max(sketch.norm, 1e-30):
            return name
    for choice, other_choice in zip(ours.choices, theirs.choices, strict=True):
        unsure = {*choice.unsure, *other_choice.unsure}
        for name, rows in choice.values.items():
            pairs = zip(rows, other_choice.values[name], strict=True)
            if any(not np.allclose(a, b, ALLOWED, 0) for i, (a, b) in enumerate(pairs) if i not in unsure):
                return name
    return None
