"""An ONNX export that answers: onnxruntime in the place of an artifact's code.

The graph takes the past as a tensor and returns it grown. Here it is kept in the pages that a sequence has, as an
artifact's cache is, so that whatever a model can be asked for works alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deepzig.artifacts.devices import HOST, Device
from deepzig.artifacts.manifest import Bounds, EntryPoint, Manifest, TensorSpec
from deepzig.artifacts.onnx_file import INPUT_IDS, LOGITS, MASK, POSITIONS, PRESENT_LATENT, OnnxFile, open_onnx
from deepzig.errors import DeepZigError
from deepzig.sampling import sample_tokens

from .engine import Settings
from .loading import cache_pages
from .model import Model
from .onnx_session import OnnxSession
from .pages import PagePool
from .tensors import Tensor
from .tokenizer import Tokenizer

Array = npt.NDArray[Any]

ROWS: dict[str, tuple[int | str, ...]] = {
    "tokens": ("n",), "seq": ("n",), "pos": ("n",), "block_table": ("b", "p"), "out_rows": ("r",)
}  # fmt: skip
"""Inputs of an entry point, and their shapes."""

DTYPES = {"f32": np.float32, "f16": np.float16}
"""Element types of caches in numpy."""

CHUNK, BATCH, PAGE_SIZE = 256, 64, 64
"""Where prompts are cut, the most sequences of a call, and tokens of a page. They are an artifact's defaults: the graph
itself has no bounds."""


class OnnxBackend:
    """onnxruntime as what runs the entry points of a model.

    Args:
        file: the export.
        pages: how many pages the cache has.
        threads: those of onnxruntime; by default all processors.

    Raises:
        DeepZigError: onnxruntime is not installed, or does not load the model.
    """

    def __init__(self, file: OnnxFile, pages: int, threads: int | None) -> None:
        self._session: OnnxSession | None = OnnxSession(file, threads)
        self._vocab = int(file.model["vocab_size"])
        self._caches = {
            spec.name: np.empty((pages, PAGE_SIZE, int(spec.shape[-1])), DTYPES[spec.dtype]) for spec in file.caches
        }

    def call(self, entry: str, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Logits of the wanted rows, f32 [r, vocab], or of `sample` the tokens; rows are checked already.

        The graph has whole texts for rows: consecutive positions of one sequence are one call of it.
        """
        given = {name: np.asarray(value) for name, value in inputs.items()}
        if entry == "sample":
            return (sample_tokens(**given),)
        tokens, seq, pos, table, wanted = (given[name] for name in ROWS)
        logits = np.empty((len(wanted), self._vocab), np.float32)
        cuts = np.flatnonzero((seq[1:] != seq[:-1]) | (pos[1:] != pos[:-1] + 1)) + 1
        for rows in np.split(np.arange(len(tokens)), cuts):
            found = self._read(tokens[rows], pos[rows], table[seq[rows[0]]])
            here = (wanted >= rows[0]) & (wanted <= rows[-1])
            logits[here] = found[wanted[here] - rows[0]]
        return (logits,)

    def copy_pages(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy pages of the cache: from the first to the second of each pair."""
        for cache in self._caches.values():
            for source, target in pairs:
                cache[target] = cache[source]

    def read_page(self, page: int) -> dict[str, Array]:
        """What a page of the cache holds: name of a state -> its bytes, u8 [n]."""
        return {name: cache[page].reshape(-1).view(np.uint8).copy() for name, cache in self._caches.items()}

    def write_page(self, page: int, data: Mapping[str, Array]) -> None:
        """Put there what `read_page` gave."""
        for name, cache in self._caches.items():
            cache[page] = data[name].view(cache.dtype).reshape(cache.shape[1:])

    def close(self) -> None:
        """Free weights and caches."""
        self._session = None
        self._caches = {}

    def _read(self, tokens: Array, pos: Array, pages: Array) -> Array:
        """Logits of all rows, [n, vocab], of a sequence that has `pages`; what is new of the cache is kept there."""
        if self._session is None:
            raise DeepZigError("the model is closed", "forward", "load it again")
        begin, end = int(pos[0]), int(pos[-1]) + 1
        feeds = {
            INPUT_IDS: tokens[None].astype(np.int64), POSITIONS: pos[None].astype(np.int64),
            MASK: np.ones((1, end), np.int64),
        }  # fmt: skip
        feeds |= {name: _past(cache, pages, begin)[None] for name, cache in self._caches.items()}
        names = [LOGITS, *(PRESENT_LATENT % layer for layer in range(len(self._caches)))]
        logits, *presents = self._session.run(names, feeds)
        for cache, present in zip(self._caches.values(), presents, strict=True):
            cache[pages[pos // PAGE_SIZE], pos % PAGE_SIZE] = present[0, begin:]
        return logits[0]


def _past(cache: Array, pages: Array, count: int) -> Array:
    """The first `count` positions of a sequence, [count, width]: no copy where its pages lie one behind the other."""
    used = pages[: -(-count // PAGE_SIZE)]
    lying = len(used) > 0 and np.array_equal(used, np.arange(used[0], used[0] + len(used)))
    blocks = cache[used[0] : used[0] + len(used)] if lying else cache[used]
    past: Array = blocks.reshape(-1, cache.shape[-1])[:count]
    return past


def manifest_of(file: OnnxFile) -> Manifest:
    """What an artifact of the same model would say of it: the same entry points, on caches of the graph's own width."""
    inputs = tuple(TensorSpec(name, "i32", shape) for name, shape in ROWS.items())
    point = EntryPoint(inputs, (), (), (TensorSpec(LOGITS, "f32", ("r", int(file.model["vocab_size"]))),))
    positions = int(file.model["max_position_embeddings"])
    return Manifest(
        created_by=f"deepzig {file.version}", model=file.model, abi={}, builds=(),
        entry_points=dict.fromkeys(("prefill", "decode"), point),
        bounds=Bounds(2 * CHUNK, BATCH, CHUNK, CHUNK // 8, PAGE_SIZE, positions),
        cache=file.caches, weights=(), memory={}, passes=(), files=file.files,
    )  # fmt: skip


def load_onnx(
    path: Path, threads: int | None, cache_tokens: int | None, full_check: bool, device: Device | None,
    settings: Settings,
) -> Model:  # fmt: skip
    """Load an ONNX export; see `deepzig.runtime.load`.

    Raises:
        DeepZigError: the export is damaged, onnxruntime is missing, or the device is no CPU.
    """
    if device not in (None, HOST):
        what = f"an ONNX model runs on the CPU only, not on {device}"
        raise DeepZigError(what, "option device", "leave the option out, or compile an artifact for it")
    file = open_onnx(path, full_check)
    manifest = manifest_of(file)
    pages = cache_pages(manifest.bounds, cache_tokens)
    backend = OnnxBackend(file, pages, threads)
    return Model(manifest, Tokenizer(path.parent), backend, PagePool(pages, PAGE_SIZE), path, settings)
