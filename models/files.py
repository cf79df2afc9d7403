"""The weight files of a checkpoint folder: found, indexed, and believed only after checks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deepzig.errors import DeepZigError
from deepzig.tensorfile import TensorEntry, read_header

from .fields import read_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
MEND = "download or write the checkpoint again"

PICKLED = ("the weights are pickled PyTorch files", "load them in transformers and save_pretrained() as safetensors")
OTHERS: Mapping[str, tuple[str, str]] = {
    "*.gguf": ("the weights are a GGUF file", "name the file itself"),
    "*.bin": PICKLED,
    "*.pt*": PICKLED,
    "*.safetensors": (
        "the weights have no index",
        f"name a single file {SINGLE}, or download {INDEX} too",
    ),
}
"""What else a folder may hold: pattern -> what that is, and what to do."""


@dataclass(frozen=True)
class Stored:
    """A tensor in a file."""

    path: Path
    entry: TensorEntry

    @property
    def where(self) -> str:
        """File and name, for errors."""
        return f"{self.path}, tensor {self.entry.name}"

    def read(self, dtype: np.dtype[Any], index: tuple[int, ...] = ()) -> npt.NDArray[Any]:
        """The part at `index` of the first dimensions, its bytes taken as `dtype`.

        Read, not mapped: pages of a mapped checkpoint would count as this process's memory.

        Raises:
            DeepZigError: the file can't be read, or became shorter.
        """
        shape = self.entry.shape[len(index) :]
        count = math.prod(shape)
        first = sum(i * math.prod(self.entry.shape[d + 1 :]) for d, i in enumerate(index))
        try:
            flat = np.fromfile(self.path, dtype, count, offset=self.entry.begin + first * dtype.itemsize)
        except OSError as error:
            raise DeepZigError(f"the file can't be read: {error.strerror}", self.where, "check the disk") from None
        if len(flat) != count:
            raise DeepZigError("the file became shorter while it was read", self.where, MEND)
        return flat.reshape(shape)


def find_tensors(folder: Path) -> dict[str, Stored]:
    """Every tensor of a checkpoint folder, by name.

    As in transformers, a single file comes before an index.

    Raises:
        DeepZigError: no weights, a missing or damaged file, or an index that contradicts its shards.
    """
    if has(folder / SINGLE):
        path = folder / SINGLE
        return {name: Stored(path, entry) for name, entry in read_header(path).items()}
    if has(folder / INDEX):
        return _find_sharded(folder)
    try:
        for pattern, (what, hint) in OTHERS.items():
            if match := next(iter(sorted(folder.glob(pattern))), None):
                raise DeepZigError(what, str(match), hint)
    except OSError:
        pass  # told below
    raise DeepZigError("there are no weights", str(folder), f"the folder must hold {SINGLE}, or {INDEX} and its shards")


def _find_sharded(folder: Path) -> dict[str, Stored]:
    index = folder / INDEX
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
        raise DeepZigError("the index has no weight_map of names to files", str(index), MEND)
    if not weight_map:
        raise DeepZigError("the weight_map of the index is empty", str(index), MEND)
    first: dict[str, str] = {}
    for name, shard in weight_map.items():
        first.setdefault(shard, name)
    found: dict[str, Stored] = {}
    for shard in sorted(first):
        where = f"{index}, tensor {first[shard]}"
        if shard in ("", ".", "..") or "/" in shard or "\\" in shard or "\0" in shard:
            raise DeepZigError(f"{shard!r} is not the name of a file in the folder", where, MEND)
        if not has(folder / shard):
            raise DeepZigError(f"the shard {shard} is missing", where, MEND)
        for name, entry in read_header(folder / shard).items():
            stored = Stored(folder / shard, entry)
            if name in found:
                raise DeepZigError(f"the tensor is also in {found[name].path.name}", stored.where, MEND)
            found[name] = stored
    for name, shard in weight_map.items():
        if name not in found or found[name].path.name != shard:
            where = f"{folder / shard}, tensor {name}"
            raise DeepZigError("the shard lacks a tensor that the index names", where, MEND)
    return found


def has(path: Path) -> bool:
    """Whether there is something at `path`.

    Raises:
        DeepZigError: it can't be told, or it is a link to nothing, as an interrupted download leaves it.
    """
    try:
        if path.is_symlink() and not path.exists():
            raise DeepZigError("the file is a link to a file that is not there", str(path), MEND)
        return path.exists()
    except OSError as error:
        raise DeepZigError(f"the file can't be read: {error.strerror}", str(path), "check the path") from None
