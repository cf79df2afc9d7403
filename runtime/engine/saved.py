"""Prefixes on the disk: pages of prompts that were read, for the next process that loads the same artifact.

The file is a safetensors file: `artifact` u8 [32], whose cache it is; `tokens` i32 [n, page_size] of each page;
`parents` i32 [n], the number of the page before it, -1 for a first one; `drafted` u8 [n]; `sha256` u8 [n, 32]; and the
pages themselves, `pages` u8 [n, bytes], what all states have of one, in the order of the manifest.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deepzig.artifacts.writer import disk_errors
from deepzig.errors import DeepZigError
from deepzig.runtime.backend import Backend
from deepzig.runtime.pages import PagePool
from deepzig.tensorfile import TensorEntry, read_header

from .prefix import Node, PrefixTree

Array = npt.NDArray[Any]

STORED = {"artifact": "U8", "tokens": "I32", "parents": "I32", "drafted": "U8", "sha256": "U8", "pages": "U8"}
"""Tensor -> element type, in the order of the file."""

TYPES: dict[str, npt.DTypeLike] = {"U8": np.uint8, "I32": "<i4"}
MEND = "save the prefixes again"


def save(path: Path, nodes: Sequence[Node], backend: Backend, states: Sequence[str], artifact: bytes) -> None:
    """Write pages to a file, which appears whole or not at all.

    Args:
        path: the file.
        nodes: pages, each after the one before it in its prompt; they are held meanwhile.
        backend: has them.
        states: what a page has, in order.
        artifact: 32 bytes, whose cache it is.

    Raises:
        DeepZigError: the file can't be written.
    """
    numbers = {node: number for number, node in enumerate(nodes)}

    def page(node: Node) -> Array:
        data = backend.read_page(node.page)
        return np.concatenate([data[state] for state in states])

    size, length = (len(page(nodes[0])), len(nodes[0].tokens)) if nodes else (0, 0)
    small: dict[str, Array] = {
        "artifact": np.frombuffer(artifact, np.uint8),
        "tokens": np.array([node.tokens for node in nodes], "<i4").reshape(len(nodes), length),
        "parents": np.array([numbers[node.parent] if node.parent else -1 for node in nodes], "<i4"),
        "drafted": np.array([node.drafted for node in nodes], np.uint8),
    }
    hashes = np.zeros((len(nodes), 32), np.uint8)
    shapes = {name: a.shape for name, a in small.items()} | {"sha256": hashes.shape, "pages": (len(nodes), size)}
    header, at = dict[str, Any](), 0
    for name, dtype in STORED.items():
        end = at + int(np.prod(shapes[name], dtype=np.int64)) * np.dtype(TYPES[dtype]).itemsize
        header[name] = {"dtype": dtype, "shape": shapes[name], "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with disk_errors(path, "save", "file of prefixes"):
        try:
            with unfinished.open("xb") as file:
                file.write(len(text).to_bytes(8, "little") + text)
                for array in small.values():
                    file.write(array.tobytes())
                begin = file.tell()
                file.write(hashes.tobytes())
                for number, node in enumerate(nodes):
                    data = page(node).tobytes()
                    hashes[number] = np.frombuffer(hashlib.sha256(data).digest(), np.uint8)
                    file.write(data)
                file.seek(begin)
                file.write(hashes.tobytes())
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(path)
        finally:
            with suppress(FileNotFoundError):
                unfinished.unlink()


def load(
    path: Path, tree: PrefixTree, pool: PagePool, backend: Backend, states: Sequence[str], artifact: bytes, salt: Any
) -> int:  # fmt: skip
    """Put the pages of a file into the tree, as far as they are not there.

    Returns:
        How many tokens they hold.

    Raises:
        DeepZigError: the file is damaged or of another artifact, or the cache has no room for it.
    """
    entries = read_header(path)
    with path.open("rb") as file:
        found = {name: _tensor(file, entries, name, path) for name in STORED if name != "pages"}
        tokens, parents = found["tokens"], found["parents"]
        count, size = len(tokens), sum(len(data) for data in backend.read_page(0).values())
        pages = entries.get("pages")
        fits = (
            tokens.ndim == 2 and (not count or tokens.shape[1] == pool.page_size)
            and parents.shape == found["drafted"].shape == (count,) and found["sha256"].shape == (count, 32)
            and np.all(parents < np.arange(count)) and np.all(parents >= -1)
            and pages is not None and pages.dtype == "U8" and pages.shape == (count, size if count else 0)
        )  # fmt: skip
        if found["artifact"].tobytes() != artifact:
            what = "the prefixes were saved with another artifact, or for another machine"
            raise DeepZigError(what, str(path), MEND)
        if not fits or pages is None:
            raise DeepZigError("the tensors do not fit each other", str(path), MEND)
        taken = pool.take(count)
        try:
            for number, page in enumerate(taken):
                file.seek(pages.begin + number * size)
                data = file.read(size)
                if hashlib.sha256(data).digest() != found["sha256"][number].tobytes():
                    raise DeepZigError(f"page {number} was changed", str(path), MEND)
                _write(backend, page, np.frombuffer(data, np.uint8), states)
            for leaf in sorted(set(range(count)) - set(parents.tolist())):
                way = _way(parents, leaf)
                said = tokens[way].reshape(-1).tolist()
                mine = [taken[number] for number in way]
                tree.insert(said, mine, bool(found["drafted"][way].all()), salt)
                for number, page in zip(way, mine, strict=True):  # where the tree has one already, it was exchanged
                    taken[number] = page
        finally:
            pool.give_back(taken)
    return count * pool.page_size


def _tensor(file: Any, entries: dict[str, TensorEntry], name: str, path: Path) -> Array:
    entry = entries.get(name)
    if entry is None or entry.dtype != STORED[name]:
        raise DeepZigError(f"{name} is missing or of another type", str(path), MEND)
    file.seek(entry.begin)
    return np.frombuffer(file.read(entry.end - entry.begin), TYPES[entry.dtype]).reshape(entry.shape)


def _write(backend: Backend, page: int, data: Array, states: Sequence[str]) -> None:
    sizes = {state: len(part) for state, part in backend.read_page(page).items()}
    parts, at = {}, 0
    for state in states:
        parts[state] = data[at : at + sizes[state]]
        at += sizes[state]
    backend.write_page(page, parts)


def _way(parents: Array, leaf: int) -> list[int]:
    """The numbers of pages from the first of a prompt to `leaf`."""
    way = [leaf]
    while parents[way[-1]] >= 0:
        way.append(int(parents[way[-1]]))
    return way[::-1]
