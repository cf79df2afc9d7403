"""Ways to damage a checkpoint in the headers of its files and in its tensors, and what is said of each."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .folders import config, random_weights, safetensors, save, stacked, write

WEIGHTS = random_weights(config(), 21)
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD = "model-00002-of-00003.safetensors"
NORM, HEAD = "model.norm.weight", "lm_head.weight"
UP = "model.layers.1.mlp.experts.4.up_proj.weight"
FILE_AGAIN = "download or write the file again"
AGAIN = "download or write the checkpoint again"
CONVERT = "convert the checkpoint to one of F32, F16, BF16"
OTHER = "is config.json of another model?"
GIVE_FOLDER = "name a Hugging Face checkpoint folder"


@dataclass(frozen=True)
class Damage:
    """What is done to a good checkpoint folder, and what is said of it; `{f}` is the folder."""

    name: str
    make: Callable[[Path], object]
    what: str
    where: str
    hint: str = FILE_AGAIN


def at(tensor: str = "", file: str = SINGLE) -> str:
    return f"{{f}}/{file}" + (f", tensor {tensor}" if tensor else "")


def edit(change: Callable[[dict[str, Any]], object], file: str = SINGLE) -> Callable[[Path], None]:
    """Change the header of a weight file, the payload stays."""

    def make(folder: Path) -> None:
        raw = (folder / file).read_bytes()
        length = int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8 : 8 + length])
        change(header)
        (folder / file).write_bytes(safetensors(header, raw[8 + length :]))

    return make


def weights(change: Callable[[dict[str, Any]], object], fuse_experts: bool = False) -> Callable[[Path], None]:
    """Write other weights."""

    def make(folder: Path) -> None:
        other = stacked(WEIGHTS) if fuse_experts else dict(WEIGHTS)
        change(other)
        save(folder / SINGLE, other)

    return make


def text(file: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / file).write_bytes(content)


def sharded(change: Callable[[Path], object]) -> Callable[[Path], None]:
    """The same checkpoint in three shards, then damaged."""

    def make(folder: Path) -> None:
        (folder / SINGLE).unlink()
        write(folder, WEIGHTS, shards=3)
        change(folder)

    return make


def shift(header: dict[str, Any], name: str, begin: int, end: int) -> None:
    header[name]["data_offsets"][0] += begin
    header[name]["data_offsets"][1] += end


def twice(folder: Path) -> None:
    entry = '"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}'
    (folder / SINGLE).write_bytes(safetensors(f"{{{entry}, {entry}}}".encode(), bytes(4)))


def truncate(cut: int) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / SINGLE, (folder / SINGLE).stat().st_size - cut)


def drop(name: str) -> Callable[[dict[str, Any]], object]:
    return lambda w: w.pop(name)


def put(name: str, change: Callable[[Any], Any]) -> Callable[[dict[str, Any]], None]:
    return lambda w: w.update({name: change(w[name])})


FIRST, SECOND = list(WEIGHTS)[:2]
BYTES = {name: x.nbytes for name, x in WEIGHTS.items()}

HEADERS = (
    Damage("empty file", text(SINGLE, b""), "the file has 0 bytes, too few for safetensors", at()),
    Damage("seven bytes", text(SINGLE, b"1234567"), "the file has 7 bytes, too few for safetensors", at()),
    Damage(
        "header beyond the file",
        text(SINGLE, (99).to_bytes(8, "little") + b"{}"),
        "the header claims 99 bytes, the file has 10",
        at(),
    ),
    Damage(
        "header beyond the format",
        text(SINGLE, (2**63).to_bytes(8, "little") + b"{}"),
        f"the header claims {2**63} bytes, the file has 10",
        at(),
    ),
    Damage("header is not JSON", text(SINGLE, safetensors(b"{]")), "the header is not JSON", at()),
    Damage("header is not UTF-8", text(SINGLE, safetensors(b'{"\xff": 1}')), "the header is not JSON", at()),
    Damage("header is nested", text(SINGLE, safetensors(b"[" * 200_000)), "the header is not JSON", at()),
    Damage("header is a list", text(SINGLE, safetensors(b"[]")), "the header is not a JSON object", at()),
    Damage("a name twice in the header", twice, "the header names 'a' twice", at()),
    Damage(
        "truncated by one",
        truncate(1),
        "the file ends 1 bytes before the tensor does",
        at(HEAD),
    ),
    Damage("bytes at the end", lambda f: (f / SINGLE).open("ab").write(b"abc"), "3 bytes follow the last tensor", at()),
    Damage(
        "tensors overlap",
        edit(lambda h: shift(h, SECOND, -4, -4)),
        "the tensor does not start where the one before ends",
        at(SECOND),
    ),
    Damage(
        "a hole",
        edit(lambda h: h.pop(FIRST)),
        "the tensor does not start where the one before ends",
        at(SECOND),
    ),
    Damage(
        "more bytes than the shape has",
        edit(lambda h: shift(h, HEAD, 0, 4)),
        f"{BYTES[HEAD] + 4} bytes are not F32[67, 40]",
        at(HEAD),
    ),
    Damage(
        "ends before it begins",
        edit(lambda h: shift(h, HEAD, 0, -2 * BYTES[HEAD])),
        f"-{BYTES[HEAD]} bytes are not F32[67, 40]",
        at(HEAD),
    ),
    Damage(
        "a type of another width",
        edit(lambda h: h[NORM].update(dtype="BF16")),
        f"{BYTES[NORM]} bytes are not BF16[40]",
        at(NORM),
    ),
    Damage(
        "an unknown type",
        edit(lambda h: h[NORM].update(dtype="F31")),
        "the element type 'F31' is unknown",
        at(NORM),
        "write the tensor in a known type",
    ),
    Damage(
        "a negative shape",
        edit(lambda h: h[NORM].update(shape=[-40])),
        "shape or data_offsets are not whole numbers from 0",
        at(NORM),
    ),
    Damage(
        "a shape of floats",
        edit(lambda h: h[NORM].update(shape=[40.0])),
        "shape or data_offsets are not whole numbers from 0",
        at(NORM),
    ),
    Damage(
        "a shape beyond 64 bits",
        edit(lambda h: h[NORM].update(shape=[2**62, 2**62])),
        f"{BYTES[NORM]} bytes are not F32[{2**62}, {2**62}]",
        at(NORM),
    ),
    Damage(
        "a shape that wraps to the right size",
        edit(lambda h: h[NORM].update(shape=[2**64 + 40])),
        f"{BYTES[NORM]} bytes are not F32[{2**64 + 40}]",
        at(NORM),
    ),
    Damage(
        "no offsets",
        edit(lambda h: h[NORM].pop("data_offsets")),
        "the header entry lacks dtype, shape or data_offsets",
        at(NORM),
    ),
    Damage(
        "an entry that is a number",
        edit(lambda h: h.update({NORM: 3})),
        "the header entry lacks dtype, shape or data_offsets",
        at(NORM),
    ),
)

TENSORS = (
    Damage("no norm", weights(drop(NORM)), "a tensor is missing", "{f}, tensor " + NORM, AGAIN),
    Damage("an expert is missing", weights(drop(UP)), "a tensor is missing", "{f}, tensor " + UP, AGAIN),
    Damage(
        "an expert too many",
        weights(lambda w: w.update({UP.replace(".4.", ".6."): w[UP]})),
        "there are 7 experts, not 6",
        at(UP.replace(".4.", ".6.")),
        OTHER,
    ),
    Damage(
        "an expert of another shape",
        weights(put(UP, lambda x: x[:17])),
        "the shape is [17, 40], not [18, 40]",
        at(UP),
        OTHER,
    ),
    Damage(
        "an expert of another type",
        weights(put(UP, lambda x: x.astype(np.float16))),
        "the experts of a layer differ in type, this is f16",
        at(UP),
        AGAIN,
    ),
    Damage(
        "an expert that can't be read",
        weights(put(UP, lambda x: x.astype(np.int8))),
        "weights of type I8 can't be read",
        at(UP),
        CONVERT,
    ),
    Damage(
        "whole numbers as weights",
        weights(put(HEAD, lambda x: (9 * x).astype(np.int64))),
        "weights of type I64 can't be read",
        at(HEAD),
        CONVERT,
    ),
    Damage(
        "transposed",
        weights(put(HEAD, lambda x: np.ascontiguousarray(x.T))),
        "the shape is [40, 67], not [67, 40]",
        at(HEAD),
        OTHER,
    ),
    Damage(
        "no rows",
        weights(put(HEAD, lambda x: x[:0])),
        "the shape is [0, 40], not [67, 40]",
        at(HEAD),
        OTHER,
    ),
    Damage(
        "a scalar",
        weights(put(NORM, lambda x: x[0])),
        "the shape is [], not [40]",
        at(NORM),
        OTHER,
    ),
    Damage(
        "a tensor too many",
        weights(lambda w: w.update({"model.layers.0.x.weight": w[NORM]})),
        "the model has no such tensor",
        at("model.layers.0.x.weight"),
        OTHER,
    ),
    Damage(
        "an odd stack",
        weights(
            put("model.layers.1.mlp.experts.gate_up_proj", lambda x: np.repeat(x, 2, 1)[:, :37]), fuse_experts=True
        ),
        "the shape is [6, 37, 40], not [6, 36, 40]",
        at("model.layers.1.mlp.experts.gate_up_proj"),
        OTHER,
    ),
    Damage(
        "a stack of rank 2",
        weights(put("model.layers.1.mlp.experts.down_proj", lambda x: x[0]), fuse_experts=True),
        "the shape is [40, 18], not [6, 40, 18]",
        at("model.layers.1.mlp.experts.down_proj"),
        OTHER,
    ),
    Damage(
        "half of a stack",
        weights(drop("model.layers.1.mlp.experts.down_proj"), fuse_experts=True),
        "a tensor is missing",
        "{f}, tensor model.layers.1.mlp.experts.down_proj.weight",
        AGAIN,
    ),
)
