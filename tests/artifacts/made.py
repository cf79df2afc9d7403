"""A small artifact without code, written by the writer."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deepzig.artifacts.manifest import Manifest
from deepzig.artifacts.writer import SHARD_BYTES, ArtifactWriter

RUNTIME = "lib/x86_64-linux/libtvm_runtime.so"
RNG = np.random.default_rng(3)
WEIGHTS: dict[str, tuple[str, npt.NDArray[Any]]] = {
    "norm@raw": ("f32", RNG.standard_normal(7, np.float32)),
    "q+k@columns": ("u32", RNG.integers(1, 2**32, (3, 5, 16), np.uint32)),
    "embed@raw": ("bf16", RNG.integers(1, 2**16, (11, 3), np.uint16)),
    "scales@raw": ("f16", RNG.standard_normal((1, 13)).astype(np.float16)),
}


def manifest_json() -> dict[str, Any]:
    """A manifest as the compiler makes it; `files` is filled in by the writer."""
    rows = [{"name": n, "dtype": "i32", "shape": ["n"]} for n in ("tokens", "seq", "pos")]
    point = {
        "inputs": [
            *rows,
            {"name": "block_table", "dtype": "i32", "shape": ["b", "p"]},
            {"name": "out_rows", "dtype": "i32", "shape": ["r"]},
        ],
        "states": ["cache.0"],
        "weights": list(WEIGHTS),
        "outputs": [{"name": "logits", "dtype": "f32", "shape": ["r", 11]}],
    }
    call = {"kernel": "proj_16", "op": "proj", "layer": 0, "where": "definition:3", "values": ["4.0"]}
    data = {
        "format": 4,
        "created_by": "a test",
        "model": {"name": "m", "vocab_size": 11, "num_hidden_layers": 1, "eos_token_ids": [1]},
        "abi": {"tvm_ffi": version("apache-tvm-ffi"), "tvm": "0.1"},
        "builds": [
            {
                "name": "x86-64-v3",
                "platform": "x86_64-linux",
                "triple": "x86_64-unknown-linux-gnu",
                "features": ["avx2", "fma"],
                "code": "code/x86-64-v3.so",
                "runtime": RUNTIME,
                "calls": {"prefill": [call], "decode": [call], "sample": []},
                "device": "cpu",
                "libraries": [],
                "plan": None,
            }
        ],
        "entry_points": {"prefill": point, "decode": point, "sample": {**point, "states": [], "weights": []}},
        "bounds": {"rows": 96, "batch": 5, "chunk": 64, "decode_rows": 9, "page_size": 16, "positions": 300},
        "cache": [{"name": "cache.0", "dtype": "bf16", "shape": ["pages", 16, 48]}],
        "weights": [{"name": n, "dtype": d, "shape": list(w.shape)} for n, (d, w) in WEIGHTS.items()],
        "memory": {"weights_bytes": 1100, "cache_bytes_per_token": 96},
        "passes": ["fuse"],
        "files": {},
    }
    copy: dict[str, Any] = json.loads(json.dumps(data))  # shares nothing
    return copy


def fill(writer: ArtifactWriter) -> None:
    """Everything but `finish`."""
    writer.add_file("code/x86-64-v3.so", b"\x7fELF code")
    writer.add_file(RUNTIME, b"\x7fELF runtime")
    with writer.weights() as file:
        for name, (dtype, weight) in WEIGHTS.items():
            file.declare(name, dtype, weight.shape)
        for name, (_, weight) in WEIGHTS.items():
            file.write(name, (weight[i : i + 2] for i in range(0, len(weight), 2)))


def write(out: Path, force: bool = False, shard_bytes: int = SHARD_BYTES) -> Path:
    with ArtifactWriter(out, force, shard_bytes) as writer:
        fill(writer)
        writer.finish(Manifest.from_json(manifest_json(), "test"))
    return out


def edit(artifact: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the JSON of an artifact's manifest."""
    path = artifact / "manifest.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
