"""Checking an artifact's self-check vectors against the checkpoint that it should be made of."""

from __future__ import annotations

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

ALLOWED = 1e-4
"""How far a recorded value may be from one computed again, relative to its norm: numpy sums as its BLAS likes."""


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
    dtype = str(manifest.model.get("dtype"))
    source, module = fuse(checkpoint, Options(dtype=dtype, bounds=Bounds(**given), debug_route="route" in inputs))
    wanted = {"dtype": dtype, **source.config.summary()}
    for key, value in wanted.items():
        if manifest.model.get(key) != value:
            what = f"the artifact has {key} {manifest.model.get(key)!r}, the checkpoint {value!r}"
            raise DeepZigError(what, str(checkpoint), "name the checkpoint that the artifact was compiled from")
    weights = WeightSource(module, source.checkpoint)
    fresh = record(module, weights, source.config.max_position_embeddings, Bounds(**given), recorded.layers)
    for ours, theirs in zip(fresh.calls, recorded.calls, strict=False):
        if value := _difference(ours, theirs):
            entry = ours.entry
            calls = [c for build in manifest.builds for c in build.calls.get(entry, ()) if value in c.values]
            place = f"{calls[0].op} at {calls[0].where}, layer {calls[0].layer}" if calls else f"value {value}"
            raise DeepZigError(
                f"the checkpoint gives other values than the artifact recorded, first in {entry}: {place}",
                str(checkpoint),
                "name the checkpoint that the artifact was compiled from",
            )
    return fresh


def _difference(ours: CheckedCall, theirs: CheckedCall) -> str | None:
    """The first value that differs."""
    for name, sketch in ours.sketches.items():
        other = theirs.sketches.get(name)
        if other is None or other.shape != sketch.shape:
            return name
        numbers = np.array([sketch.norm, *sketch.projections]) - [other.norm, *other.projections]
        if not np.abs(numbers).max() <= ALLOWED * max(sketch.norm, 1e-30):
            return name
    return None
