"""Ways to damage a checkpoint in its files and its config, and what is said of each."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .damages import (
    AGAIN,
    FIRST,
    GIVE_FOLDER,
    HEAD,
    INDEX,
    NORM,
    OTHER,
    SECOND,
    SHARD,
    SINGLE,
    WEIGHTS,
    Damage,
    at,
    sharded,
    text,
)
from .folders import DATA, save


def field(**changes: Any) -> Callable[[Path], object]:
    return lambda folder: (folder / "config.json").write_text(json.dumps({**DATA, **changes}))


def index(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        data = json.loads((folder / INDEX).read_text())
        change(data)
        (folder / INDEX).write_text(json.dumps(data))

    return sharded(damage)


def dangling(folder: Path) -> None:
    """As the cache of Hugging Face is after an interrupted download."""
    (folder / SINGLE).unlink()
    (folder / SINGLE).symlink_to("../../blobs/0123abcd")


def as_folder(name: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return make


def copy_tensor(folder: Path) -> None:
    """The first two shards hold the same tensor."""
    part = {name: WEIGHTS[name] for name in [*list(WEIGHTS)[1::3], FIRST]}
    save(folder / SHARD, part)


def only(name: str, content: bytes) -> Callable[[Path], None]:
    """Weights of another kind alone."""

    def make(folder: Path) -> None:
        (folder / SINGLE).unlink()
        (folder / name).write_bytes(content)

    return make


def empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


FILES = (
    Damage(
        "a shard is missing",
        sharded(lambda f: (f / SHARD).unlink()),
        f"the shard {SHARD} is missing",
        at(SECOND, INDEX),
        AGAIN,
    ),
    Damage(
        "a shard is damaged",
        sharded(lambda f: (f / SHARD).write_bytes(b"\n")),
        "the file has 1 bytes, too few for safetensors",
        at(file=SHARD),
    ),
    Damage(
        "the index names another shard",
        index(lambda i: i["weight_map"].update({NORM: SHARD, HEAD: SHARD})),
        "the shard lacks a tensor that the index names",
        at(NORM if list(WEIGHTS).index(NORM) % 3 != 1 else HEAD, SHARD),
        AGAIN,
    ),
    Damage(
        "the index names what is nowhere",
        index(lambda i: i["weight_map"].update(nowhere=SHARD)),
        "the shard lacks a tensor that the index names",
        at("nowhere", SHARD),
        AGAIN,
    ),
    Damage(
        "the index leaves the folder",
        index(lambda i: i["weight_map"].update({NORM: "../x.safetensors"})),
        "'../x.safetensors' is not the name of a file in the folder",
        at(NORM, INDEX),
        AGAIN,
    ),
    Damage(
        "the index names an absolute path",
        index(lambda i: i["weight_map"].update({NORM: "/etc/passwd"})),
        "'/etc/passwd' is not the name of a file in the folder",
        at(NORM, INDEX),
        AGAIN,
    ),
    Damage(
        "the index names the folder",
        index(lambda i: i["weight_map"].update({NORM: ".."})),
        "'..' is not the name of a file in the folder",
        at(NORM, INDEX),
        AGAIN,
    ),
    Damage(
        "a name longer than names may be",
        index(lambda i: i["weight_map"].update({NORM: "x" * 300})),
        "the file can't be read: File name too long",
        "{f}/" + "x" * 300,
        "check the path",
    ),
    Damage(
        "two files hold a tensor",
        sharded(copy_tensor),
        "the tensor is also in model-00001-of-00003.safetensors",
        at(FIRST, SHARD),
        AGAIN,
    ),
    Damage(
        "the index has no map",
        index(lambda i: i.pop("weight_map")),
        "the index has no weight_map of names to files",
        at(file=INDEX),
        AGAIN,
    ),
    Damage(
        "the map is a list",
        index(lambda i: i.update(weight_map=[NORM])),
        "the index has no weight_map of names to files",
        at(file=INDEX),
        AGAIN,
    ),
    Damage(
        "the map holds numbers",
        index(lambda i: i["weight_map"].update({NORM: 2})),
        "the index has no weight_map of names to files",
        at(file=INDEX),
        AGAIN,
    ),
    Damage(
        "the map is empty",
        index(lambda i: i.update(weight_map={})),
        "the weight_map of the index is empty",
        at(file=INDEX),
        AGAIN,
    ),
    Damage("the index is a list", sharded(text(INDEX, b"[]")), "the file is not a JSON object", at(file=INDEX)),
    Damage(
        "the index is nested",
        sharded(text(INDEX, b'{"a":' * 200_000)),
        "the file is not JSON: it is nested too deeply",
        at(file=INDEX),
    ),
    Damage(
        "a folder in place of the file",
        as_folder(SINGLE),
        "the file can't be read: Is a directory",
        at(),
        "check the path",
    ),
    Damage(
        "a folder in place of the shard",
        sharded(as_folder(SHARD)),
        "the file can't be read: Is a directory",
        at(file=SHARD),
        "check the path",
    ),
    Damage("a link to a missing blob", dangling, "the file is a link to a file that is not there", at(), AGAIN),
    Damage(
        "no weights",
        lambda f: (f / SINGLE).unlink(),
        "there are no weights",
        "{f}",
        f"the folder must hold {SINGLE}, or {INDEX} and its shards",
    ),
    Damage(
        "pickled weights",
        only("pytorch_model.bin", b"PK"),
        "the weights are pickled PyTorch files",
        "{f}/pytorch_model.bin",
        "load them in transformers and save_pretrained() as safetensors",
    ),
    Damage(
        "a shard without its index",
        only(SHARD, b""),
        "the weights have no index",
        at(file=SHARD),
        f"name a single file {SINGLE}, or download {INDEX} too",
    ),
    Damage(
        "GGUF in the folder",
        only("model.gguf", b"GGUF"),
        "the weights are a GGUF file",
        "{f}/model.gguf",
        "name the file itself",
    ),
)

CONFIGS = (
    Damage("an empty folder", empty, "the folder has no config.json", "{f}", GIVE_FOLDER),
    Damage(
        "no config",
        lambda f: (f / "config.json").unlink(),
        "the folder has weights but no config.json",
        "{f}",
        "download config.json into it, too",
    ),
    Damage(
        "config is not JSON",
        text("config.json", b"model: x"),
        "the file is not JSON: Expecting value: line 1 column 1 (char 0)",
        "{f}/config.json",
    ),
    Damage("config is a list", text("config.json", b"[1]"), "the file is not a JSON object", "{f}/config.json"),
    Damage(
        "config is a folder",
        as_folder("config.json"),
        "the file can't be read: Is a directory",
        "{f}/config.json",
        GIVE_FOLDER,
    ),
    Damage(
        "config is a dead link",
        lambda f: [(f / "config.json").unlink(), (f / "config.json").symlink_to("blob")],
        "the file is a link to a file that is not there",
        "{f}/config.json",
        AGAIN,
    ),
    Damage(
        "NaN in the config",
        field(rms_norm_eps=float("nan")),
        "nan is not a number above 0",
        "{f}/config.json, field rms_norm_eps",
        "correct config.json",
    ),
    Damage(
        "Infinity in the config",
        field(rope_theta=float("inf")),
        "inf is not a number above 0",
        "{f}/config.json, field rope_theta",
        "correct config.json",
    ),
    Damage(
        "NaN as a size",
        field(hidden_size=float("nan")),
        "nan is not a whole number from 1",
        "{f}/config.json, field hidden_size",
        "correct config.json",
    ),
    Damage(
        "another width",
        field(hidden_size=41),
        "the shape is [67, 40], not [67, 41]",
        at("model.embed_tokens.weight"),
        OTHER,
    ),
    Damage(
        "more experts",
        field(n_routed_experts=8),
        "the shape is [6, 40], not [8, 40]",
        at("model.layers.1.mlp.gate.weight"),
        OTHER,
    ),
    Damage(
        "no biases",
        field(attention_bias=False),
        "the model has no such tensor",
        at("model.layers.0.self_attn.q_a_proj.bias"),
        OTHER,
    ),
)
