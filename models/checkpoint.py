"""Checkpoint folders: tensors found, checked, and read one at a time.

A tensor may be stored in one file or in shards listed by an index. The experts of a layer may be stored one by one
(`mlp.experts.{e}.gate_proj.weight`, as DeepSeek publishes them) or stacked (`mlp.experts.gate_up_proj`, as transformers
holds them); here both are the one rank-3 tensor `mlp.experts.gate_proj.weight`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deepzig.errors import DeepZigError
from deepzig.tensorfile import TensorEntry, read_header

from .fields import read_json

Array = npt.NDArray[np.generic]

DTYPES = {"F32": "f32", "F16": "f16", "BF16": "bf16"}
"""Element types that can be read -> their names here."""

NUMPY: dict[str, np.dtype[Any]] = {
    "f32": np.dtype(np.float32),
    "f16": np.dtype(np.float16),
    "bf16": np.dtype(np.uint16),
}
"""How they are held; bf16 as its bits."""

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
STACKED = re.compile(r"(.*\.mlp\.experts)\.(gate|up|down)_proj\.weight$")
EXPERT = re.compile(r"(.*\.mlp\.experts)\.(\d+)\.(gate|up|down)_proj\.weight$")
STRAY = re.compile(r".*rotary_emb\.inv_freq$")
MEND = "download or write the checkpoint again"


class Checkpoint:
    """The tensors of a checkpoint folder.

    Raises:
        DeepZigError: no weights, a missing or truncated shard, or an index that contradicts its shards.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._entries: dict[str, tuple[Path, TensorEntry]] = {}
        if (folder / INDEX).is_file():
            self._open_shards()
        elif (folder / SINGLE).is_file():
            path = folder / SINGLE
            self._entries = {name: (path, entry) for name, entry in read_header(path).items()}
        else:
            raise DeepZigError(
                "there are no weights", str(folder), f"the folder must hold {SINGLE}, or {INDEX} and its shards"
            )

    def _open_shards(self) -> None:
        index = self.folder / INDEX
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
            raise DeepZigError("the index has no weight_map", str(index), MEND)
        for shard in sorted(set(weight_map.values())):
            path = self.folder / shard
            if Path(shard).name != shard or not path.is_file():
                tensor = next(k for k, v in weight_map.items() if v == shard)
                raise DeepZigError(f"the shard {shard} is missing", f"{index}, tensor {tensor}", MEND)
            for name, entry in read_header(path).items():
                if name in self._entries:
                    raise DeepZigError(
                        f"the tensor is also in {self._entries[name][0].name}", f"{path}, tensor {name}", MEND
                    )
                self._entries[name] = (path, entry)
        for name, shard in weight_map.items():
            if name not in self._entries or self._entries[name][0].name != shard:
                raise DeepZigError(
                    "the shard lacks a tensor that the index names", f"{self.folder / shard}, tensor {name}", MEND
                )

    def names(self) -> list[str]:
        """The names as stored."""
        return list(self._entries)

    @cached_property
    def _experts(self) -> dict[str, list[str]]:
        """Stacked name -> the names of its experts, in order."""
        found: dict[str, dict[int, str]] = {}
        for name in self._entries:
            if match := EXPERT.match(name):
                found.setdefault(f"{match[1]}.{match[3]}_proj.weight", {})[int(match[2])] = name
        return {
            stack: [names[e] for e in sorted(names)]
            for stack, names in found.items()
            if set(names) == set(range(len(names)))
        }

    def _stored(self, name: str) -> list[str]:
        """The stored tensors that `name` is made of; empty if it is not there."""
        if name in self._entries:
            return [name]
        match = STACKED.match(name)
        if match is None:
            return []
        fused = f"{match[1]}.{'down_proj' if match[2] == 'down' else 'gate_up_proj'}"
        return self._experts.get(name) or ([fused] if fused in self._entries else [])

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape, of stacked experts [experts, out, in]."""
        stored = self._stored(name)
        shape = self._entries[stored[0]][1].shape
        if stored[0] == name or len(shape) < 2:
            return shape
        if len(shape) == 2:
            return (len(stored), *shape)
        return shape if stored[0].endswith("down_proj") else (shape[0], shape[1] // 2, *shape[2:])

    def dtype(self, name: str) -> str:
        """The element type: f32, f16 or bf16."""
        return DTYPES[self._entries[self._stored(name)[0]][1].dtype]

    def read(self, name: str) -> Array:
        """A stored tensor: float32, float16, or the bits of bf16 as uint16."""
        return self._read(name, ())

    def _read(self, name: str, index: tuple[int, ...]) -> Array:
        """The part of a stored tensor at `index` of its first dimensions.

        Read, not mapped: pages of a mapped checkpoint would count as this process's memory.
        """
        path, entry = self._entries[name]
        dtype = NUMPY[DTYPES[entry.dtype]]
        shape = entry.shape[len(index) :]
        count = math.prod(shape)
        first = sum(i * math.prod(entry.shape[d + 1 :]) for d, i in enumerate(index))
        return np.fromfile(path, dtype, count, offset=entry.begin + first * dtype.itemsize).reshape(shape)

    def pieces(self, name: str) -> Iterator[Array]:
        """The slices of a rank-3 tensor along its first dimension, one at a time."""
        stored = self._stored(name)
        if len(stored) > 1 or EXPERT.match(stored[0]):
            yield from map(self.read, stored)
            return
        half = 0
        if stored[0].endswith("gate_up_proj"):
            half = self._entries[stored[0]][1].shape[1] // 2
        for i in range(self._entries[stored[0]][1].shape[0]):
            piece = self._read(stored[0], (i,))
            if half:
                piece = piece[:half] if ".gate_proj" in name else piece[half:]
            yield piece

    def check(self, expected: Mapping[str, tuple[int, ...]], layers: int | None = None) -> None:
        """Check that the checkpoint holds just what a model wants.

        Args:
            expected: shape by name, experts stacked.
            layers: tensors of layers from this one on (multi-token prediction) are let be.

        Raises:
            DeepZigError: a tensor is missing, of another shape, of a type that can't be read, or not wanted.
        """
        used: set[str] = set()
        for name, shape in expected.items():
            stored = self._stored(name)
            if not stored:
                raise DeepZigError("a tensor is missing", f"{self.folder}, tensor {name}", MEND)
            used.update(stored)
            for part in stored:
                self._check_part(part, name, shape, len(stored))
            if self.shape(name) != shape:
                self._misshaped(stored[0], self.shape(name), shape)
        for name in self._entries.keys() - used:
            layer = re.match(r"model\.layers\.(\d+)\.", name)
            predicts = layer is not None and layers is not None and int(layer[1]) >= layers
            tied = name == "lm_head.weight" and "lm_head.weight" not in expected
            if not (predicts or tied or STRAY.match(name)):
                where = f"{self._entries[name][0]}, tensor {name}"
                raise DeepZigError("the model has no such tensor", where, "is config.json of another model?")

    def _check_part(self, part: str, name: str, shape: tuple[int, ...], count: int) -> None:
        path, entry = self._entries[part]
        if entry.dtype not in DTYPES:
            hint = f"convert the checkpoint to one of {', '.join(DTYPES)}"
            raise DeepZigError(f"weights of type {entry.dtype} can't be read", f"{path}, tensor {part}", hint)
        if EXPERT.match(part) and entry.shape != shape[1:]:
            self._misshaped(part, entry.shape, shape[1:])
        if EXPERT.match(part) and entry.dtype != self._entries[self._stored(name)[0]][1].dtype:
            raise DeepZigError(
                f"the experts of a layer differ in type, this is {entry.dtype}", f"{path}, tensor {part}", MEND
            )
        if EXPERT.match(part) and count != shape[0]:
            raise DeepZigError(f"there are {count} experts, not {shape[0]}", f"{path}, tensor {name}", MEND)

    def _misshaped(self, name: str, have: tuple[int, ...], want: tuple[int, ...]) -> None:
        path, _ = self._entries[name]
        what = f"the shape is {list(have)}, not {list(want)}"
        raise DeepZigError(what, f"{path}, tensor {name}", "is config.json of another model?")
