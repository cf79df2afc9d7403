"""What the fields of a manifest say of each other."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from .checks import LARGEST, Fields

if TYPE_CHECKING:
    from .manifest import Bounds, EntryPoint, Manifest

ITEM_BYTES = {"f32": 4, "bf16": 2, "f16": 2, "i32": 4, "u32": 4, "i8": 1}
"""Bytes of an element, by the names of the IR."""

ENTRY_POINTS = ("prefill", "decode", "sample")
"""What every artifact has; there may be more."""

ROWS = {"tokens": 1, "seq": 1, "pos": 1, "block_table": 2, "out_rows": 1}
"""Inputs that `prefill` and `decode` have, all of them i32 -> number of dimensions."""

MAX_PAGE = 1 << 30
"""Bytes of a page in a layer; a real one has some hundred thousand."""

WEIGHTS = ".safetensors"


def check(manifest: Manifest, fields: Fields) -> None:
    """Refuse a manifest that contradicts itself.

    Raises:
        DeepZigError: a name is unknown or there twice, or a size makes no sense.
    """
    for name in ENTRY_POINTS:
        if name not in manifest.entry_points:
            raise fields.fail("entry_points", f"lack {name}")
    for field in ("builds", "cache", "weights"):
        fields.unique((entry.name for entry in getattr(manifest, field)), field)
    for name, point in manifest.entry_points.items():
        _check_entry_point(manifest, name, point, fields)
    _check_tensors(manifest, fields)
    _check_builds(manifest, fields)
    _check_bounds(manifest.bounds, fields)
    vocabulary = int(manifest.model["vocab_size"])
    for token in manifest.model["eos_token_ids"]:
        if token >= vocabulary:
            raise fields.fail("model.eos_token_ids", f"name {token}, beyond a vocabulary of {vocabulary}")
    _check_file_names(manifest.files, fields)


def _check_entry_point(manifest: Manifest, name: str, point: EntryPoint, fields: Fields) -> None:
    field = f"entry_points.{name}"
    for kind, used, known in (
        ("states", point.states, {t.name for t in manifest.cache}),
        ("weights", point.weights, {t.name for t in manifest.weights}),
    ):
        if unknown := sorted(set(used) - known):
            raise fields.fail(f"{field}.{kind}", f"name {unknown[0]}, which is not listed")
    for kind, specs in (("inputs", point.inputs), ("outputs", point.outputs)):
        fields.unique((spec.name for spec in specs), f"{field}.{kind}")
    given = {spec.name: spec for spec in point.inputs}
    for row, rank in ROWS.items() if name in ("prefill", "decode") else ():
        if row not in given or (given[row].dtype, len(given[row].shape)) != ("i32", rank):
            raise fields.fail(f"{field}.inputs", f"lack {row}, i32 with {rank} dimensions")
    for spec in point.outputs:
        if spec.name == "logits" and spec.shape[1:] != (manifest.model["vocab_size"],):
            raise fields.fail(f"{field}.outputs logits", "are not of the vocabulary's size")


def _check_tensors(manifest: Manifest, fields: Fields) -> None:
    for tensor in manifest.weights:
        if not all(isinstance(d, int) for d in tensor.shape):
            raise fields.fail(f"weights {tensor.name} shape", "is not fixed")
        if math.prod(map(int, tensor.shape)) * ITEM_BYTES[tensor.dtype] > LARGEST:
            raise fields.fail(f"weights {tensor.name} shape", "is too large")
    for tensor in manifest.cache:
        pages, *page = tensor.shape or (0,)
        if not isinstance(pages, str) or not all(isinstance(d, int) for d in page):
            raise fields.fail(f"cache {tensor.name} shape", "is not a number of pages, then fixed")
        if math.prod(map(int, page)) * ITEM_BYTES[tensor.dtype] > MAX_PAGE:
            raise fields.fail(f"cache {tensor.name}", f"has pages of more than {MAX_PAGE} bytes")


def _check_builds(manifest: Manifest, fields: Fields) -> None:
    if not manifest.builds:
        raise fields.fail("builds", "are none")
    for number, build in enumerate(manifest.builds):
        if unknown := sorted(build.calls.keys() - manifest.entry_points.keys()):
            raise fields.fail(f"builds[{number}].calls", f"name {unknown[0]}, which is no entry point")
        libraries = (("libraries", part) for part in build.libraries)
        for kind, part in (("code", build.code), ("runtime", build.runtime), ("plan", build.plan), *libraries):
            if part and part.endswith(WEIGHTS):  # which would not be hashed
                raise fields.fail(f"builds[{number}].{kind}", "is a weight file")
        fields.unique(filter(None, (build.runtime, *build.libraries)), f"builds[{number}].libraries")


def _check_bounds(bounds: Bounds, fields: Fields) -> None:
    if bounds.rows < max(bounds.chunk, bounds.decode_rows):
        raise fields.fail("bounds.rows", "is less than a chunk")


def _check_file_names(files: Mapping[str, object], fields: Fields) -> None:
    """Some file systems take large and small letters for the same."""
    seen: dict[str, str] = {}
    for name in files:
        other = seen.setdefault(name.casefold(), name)
        if other != name:
            raise fields.fail("files", f"name {other} and {name}, which are one file on some systems")
