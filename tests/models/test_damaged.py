"""Damaged checkpoints: each is refused by the name of its file and tensor, in three lines, word for word."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deepzig.compiler.driver import Options, fuse
from deepzig.errors import DeepZigError
from deepzig.tensorfile import MAX_HEADER

from .folders import DATA, config, random_weights, safetensors, save, stacked, write

WEIGHTS = random_weights(config(), 21)
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD = "model-00002-of-00003.safetensors"
NORM, HEAD = "model.norm.weight", "lm_head.weight"
UP = "model.layers.1.mlp.experts.4.up_proj.weight"
FILE_AGAIN = "download or write the file again"
AGAIN = "download or write the checkpoint again"
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


def field(**changes: Any) -> Callable[[Path], object]:
    return lambda folder: (folder / "config.json").write_text(json.dumps({**DATA, **changes}))


def text(file: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / file).write_bytes(content)


def sharded(change: Callable[[Path], object]) -> Callable[[Path], None]:
    """The same checkpoint in three shards, then damaged."""

    def make(folder: Path) -> None:
        (folder / SINGLE).unlink()
        write(folder, WEIGHTS, shards=3)
        change(folder)

    return make


def index(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        data = json.loads((folder / INDEX).read_text())
        change(data)
        (folder / INDEX).write_text(json.dumps(data))

    return sharded(damage)


def shift(header: dict[str, Any], name: str, begin: int, end: int) -> None:
    header[name]["data_offsets"][0] += begin
    header[name]["data_offsets"][1] += end


def twice(folder: Path) -> None:
    entry = '"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}'
    (folder / SINGLE).write_bytes(safetensors(f"{{{entry}, {entry}}}".encode(), bytes(4)))


def truncate(cut: int) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / SINGLE, (folder / SINGLE).stat().st_size - cut)


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
    part = {name: WEIGHTS[name] for name in [*list(WEIGHTS)[1::3], list(WEIGHTS)[0]]}
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


def drop(name: str) -> Callable[[dict[str, Any]], object]:
    return lambda w: w.pop(name)


def put(name: str, change: Callable[[Any], Any]) -> Callable[[dict[str, Any]], None]:
    return lambda w: w.update({name: change(w[name])})


SIZE = len(safetensors({}))
FIRST, SECOND = list(WEIGHTS)[:2]
BYTES = {name: x.nbytes for name, x in WEIGHTS.items()}

HEADERS = (
    Damage("empty file", text(SINGLE, b""), "the file has 0 bytes, too few for safetensors", "{f}/" + SINGLE),
    Damage("seven bytes", text(SINGLE, b"1234567"), "the file has 7 bytes, too few for safetensors", "{f}/" + SINGLE),
    Damage(
        "header beyond the file", text(SINGLE, (99).to_bytes(8, "little") + b"{}"),
        "the header claims 99 bytes, the file has 10", "{f}/" + SINGLE,
    ),
    Damage(
        "header beyond the format", text(SINGLE, (2**63).to_bytes(8, "little") + b"{}"),
        f"the header claims {2**63} bytes, the file has 10", "{f}/" + SINGLE,
    ),
    Damage("header is not JSON", text(SINGLE, safetensors(b"{]")), "the header is not JSON", "{f}/" + SINGLE),
    Damage("header is not UTF-8", text(SINGLE, safetensors(b'{"\xff": 1}')), "the header is not JSON", "{f}/" + SINGLE),
    Damage("header is nested", text(SINGLE, safetensors(b"[" * 200_000)), "the header is not JSON", "{f}/" + SINGLE),
    Damage("header is a list", text(SINGLE, safetensors(b"[]")), "the header is not a JSON object", "{f}/" + SINGLE),
    Damage("a name twice in the header", twice, "the header names 'a' twice", "{f}/" + SINGLE),
    Damage(
        "truncated by one", truncate(1), "the file ends 1 bytes before the tensor does", "{f}/" + SINGLE + f", tensor {HEAD}",
    ),
    Damage("bytes at the end", lambda f: (f / SINGLE).open("ab").write(b"abc"), "3 bytes follow the last tensor", "{f}/" + SINGLE),
    Damage(
        "tensors overlap", edit(lambda h: shift(h, SECOND, -4, -4)),
        "the tensor does not start where the one before ends", "{f}/" + SINGLE + f", tensor {SECOND}",
    ),
    Damage(
        "a hole", edit(lambda h: h.pop(FIRST)),
        "the tensor does not start where the one before ends", "{f}/" + SINGLE + f", tensor {SECOND}",
    ),
    Damage(
        "more bytes than the shape has", edit(lambda h: shift(h, HEAD, 0, 4)),
        f"{BYTES[HEAD] + 4} bytes are not F32[67, 40]", "{f}/" + SINGLE + f", tensor {HEAD}",
    ),
    Damage(
        "ends before it begins", edit(lambda h: shift(h, HEAD, 0, -2 * BYTES[HEAD])),
        f"-{BYTES[HEAD]} bytes are not F32[67, 40]", "{f}/" + SINGLE + f", tensor {HEAD}",
    ),
    Damage(
        "a type of another width", edit(lambda h: h[NORM].update(dtype="BF16")),
        f"{BYTES[NORM]} bytes are not BF16[40]", "{f}/" + SINGLE + f", tensor {NORM}",
    ),
    Damage(
        "an unknown type", edit(lambda h: h[NORM].update(dtype="F31")),
        "the element type 'F31' is unknown", "{f}/" + SINGLE + f", tensor {NORM}", "write the tensor in a known type",
    ),
    Damage(
        "a negative shape", edit(lambda h: h[NORM].update(shape=[-40])),
        "shape or data_offsets are not whole numbers from 0", "{f}/" + SINGLE + f", tensor {NORM}",
    ),
    Damage(
        "a shape of floats", edit(lambda h: h[NORM].update(shape=[40.0])),
        "shape or data_offsets are not whole numbers from 0", "{f}/" + SINGLE + f", tensor {NORM}",
    ),
    Damage(
        "a shape beyond 64 bits", edit(lambda h: h[NORM].update(shape=[2**62, 2**62])),
        f"{BYTES[NORM]} bytes are not F32[{2**62}, {2**62}]", "{f}/" + SINGLE + f", tensor {NORM}",
    ),
    Damage(
        "a shape that wraps to the right size", edit(lambda h: h[NORM].update(shape=[2**64 + 40])),
        f"{BYTES[NORM]} bytes are not F32[{2**64 + 40}]", "{f}/" + SINGLE + f", tensor {NORM}",
    ),
    Damage(
        "no offsets", edit(lambda h: h[NORM].pop("data_offsets")),
        "the header entry lacks dtype, shape or data_offsets", "{f}/" + SINGLE + f", tensor {NORM}",
    ),
    Damage(
        "an entry that is a number", edit(lambda h: h.update({NORM: 3})),
        "the header entry lacks dtype, shape or data_offsets", "{f}/" + SINGLE + f", tensor {NORM}",
    ),
)  # fmt: skip

TENSORS = (
    Damage("no norm", weights(drop(NORM)), "a tensor is missing", "{f}, tensor " + NORM, AGAIN),
    Damage("an expert is missing", weights(drop(UP)), "a tensor is missing", "{f}, tensor " + UP, AGAIN),
    Damage(
        "an expert too many", weights(lambda w: w.update({UP.replace(".4.", ".6."): w[UP]})),
        "there are 7 experts, not 6", "{f}/" + SINGLE + ", tensor " + UP.replace(".4.", ".6."), OTHER,
    ),
    Damage(
        "an expert of another shape", weights(put(UP, lambda x: x[:17])),
        "the shape is [17, 40], not [18, 40]", "{f}/" + SINGLE + f", tensor {UP}", OTHER,
    ),
    Damage(
        "an expert of another type", weights(put(UP, lambda x: x.astype(np.float16))),
        "the experts of a layer differ in type, this is f16", "{f}/" + SINGLE + f", tensor {UP}", AGAIN,
    ),
    Damage(
        "an expert that can't be read", weights(put(UP, lambda x: x.astype(np.int8))),
        "weights of type I8 can't be read", "{f}/" + SINGLE + f", tensor {UP}", "convert the checkpoint to one of F32, F16, BF16",
    ),
    Damage(
        "whole numbers as weights", weights(put(HEAD, lambda x: (9 * x).astype(np.int64))),
        "weights of type I64 can't be read", "{f}/" + SINGLE + f", tensor {HEAD}", "convert the checkpoint to one of F32, F16, BF16",
    ),
    Damage(
        "transposed", weights(put(HEAD, lambda x: np.ascontiguousarray(x.T))),
        "the shape is [40, 67], not [67, 40]", "{f}/" + SINGLE + f", tensor {HEAD}", OTHER,
    ),
    Damage(
        "no rows", weights(put(HEAD, lambda x: x[:0])), "the shape is [0, 40], not [67, 40]", "{f}/" + SINGLE + f", tensor {HEAD}", OTHER,
    ),
    Damage(
        "a scalar", weights(put(NORM, lambda x: x[0])), "the shape is [], not [40]", "{f}/" + SINGLE + f", tensor {NORM}", OTHER,
    ),
    Damage(
        "a tensor too many", weights(lambda w: w.update({"model.layers.0.x.weight": w[NORM]})),
        "the model has no such tensor", "{f}/" + SINGLE + ", tensor model.layers.0.x.weight", OTHER,
    ),
    Damage(
        "an odd stack",
        weights(put("model.layers.1.mlp.experts.gate_up_proj", lambda x: np.repeat(x, 2, 1)[:, :37]), fuse_experts=True),
        "the shape is [6, 37, 40], not [6, 36, 40]", "{f}/" + SINGLE + ", tensor model.layers.1.mlp.experts.gate_up_proj", OTHER,
    ),
    Damage(
        "a stack of rank 2", weights(put("model.layers.1.mlp.experts.down_proj", lambda x: x[0]), fuse_experts=True),
        "the shape is [40, 18], not [6, 40, 18]", "{f}/" + SINGLE + ", tensor model.layers.1.mlp.experts.down_proj", OTHER,
    ),
    Damage(
        "half of a stack", weights(drop("model.layers.1.mlp.experts.down_proj"), fuse_experts=True),
        "a tensor is missing", "{f}, tensor model.layers.1.mlp.experts.down_proj.weight", AGAIN,
    ),
)  # fmt: skip

FILES = (
    Damage("a shard is missing", sharded(lambda f: (f / SHARD).unlink()), f"the shard {SHARD} is missing", "{f}/" + INDEX + f", tensor {SECOND}", AGAIN),
    Damage(
        "a shard is damaged", sharded(lambda f: (f / SHARD).write_bytes(b"\n")),
        "the file has 1 bytes, too few for safetensors", "{f}/" + SHARD,
    ),
    Damage(
        "the index names another shard", index(lambda i: i["weight_map"].update({NORM: SHARD, HEAD: SHARD})),
        "the shard lacks a tensor that the index names", "{f}/" + SHARD + f", tensor {NORM if list(WEIGHTS).index(NORM) % 3 != 1 else HEAD}", AGAIN,
    ),
    Damage(
        "the index names what is nowhere", index(lambda i: i["weight_map"].update(nowhere=SHARD)),
        "the shard lacks a tensor that the index names", "{f}/" + SHARD + ", tensor nowhere", AGAIN,
    ),
    Damage(
        "the index leaves the folder", index(lambda i: i["weight_map"].update({NORM: "../x.safetensors"})),
        "'../x.safetensors' is not the name of a file in the folder", "{f}/" + INDEX + f", tensor {NORM}", AGAIN,
    ),
    Damage(
        "the index names an absolute path", index(lambda i: i["weight_map"].update({NORM: "/etc/passwd"})),
        "'/etc/passwd' is not the name of a file in the folder", "{f}/" + INDEX + f", tensor {NORM}", AGAIN,
    ),
    Damage(
        "the index names the folder", index(lambda i: i["weight_map"].update({NORM: ".."})),
        "'..' is not the name of a file in the folder", "{f}/" + INDEX + f", tensor {NORM}", AGAIN,
    ),
    Damage(
        "a name longer than names may be", index(lambda i: i["weight_map"].update({NORM: "x" * 300})),
        "the file can't be read: File name too long", "{f}/" + "x" * 300, "check the path",
    ),
    Damage("two files hold a tensor", sharded(copy_tensor), "the tensor is also in model-00001-of-00003.safetensors", "{f}/" + SHARD + f", tensor {FIRST}", AGAIN),
    Damage("the index has no map", index(lambda i: i.pop("weight_map")), "the index has no weight_map of names to files", "{f}/" + INDEX, AGAIN),
    Damage("the map is a list", index(lambda i: i.update(weight_map=[NORM])), "the index has no weight_map of names to files", "{f}/" + INDEX, AGAIN),
    Damage("the map holds numbers", index(lambda i: i["weight_map"].update({NORM: 2})), "the index has no weight_map of names to files", "{f}/" + INDEX, AGAIN),
    Damage("the map is empty", index(lambda i: i.update(weight_map={})), "the weight_map of the index is empty", "{f}/" + INDEX, AGAIN),
    Damage("the index is a list", sharded(text(INDEX, b"[]")), "the file is not a JSON object", "{f}/" + INDEX),
    Damage("the index is nested", sharded(text(INDEX, b'{"a":' * 200_000)), "the file is not JSON: it is nested too deeply", "{f}/" + INDEX),
    Damage("a folder in place of the file", as_folder(SINGLE), "the file can't be read: Is a directory", "{f}/" + SINGLE, "check the path"),
    Damage("a folder in place of the shard", sharded(as_folder(SHARD)), "the file can't be read: Is a directory", "{f}/" + SHARD, "check the path"),
    Damage("a link to a missing blob", dangling, "the file is a link to a file that is not there", "{f}/" + SINGLE, AGAIN),
    Damage(
        "no weights", lambda f: (f / SINGLE).unlink(), "there are no weights", "{f}",
        f"the folder must hold {SINGLE}, or {INDEX} and its shards",
    ),
    Damage(
        "pickled weights", only("pytorch_model.bin", b"PK"), "the weights are pickled PyTorch files", "{f}/pytorch_model.bin",
        "load them in transformers and save_pretrained() as safetensors",
    ),
    Damage(
        "a shard without its index", only(SHARD, b""), "the weights have no index", "{f}/" + SHARD,
        f"name a single file {SINGLE}, or download {INDEX} too",
    ),
    Damage("GGUF in the folder", only("model.gguf", b"GGUF"), "the weights are a GGUF file", "{f}/model.gguf", "name the file itself"),
)  # fmt: skip

CONFIGS = (
    Damage("an empty folder", empty, "the folder has no config.json", "{f}", GIVE_FOLDER),
    Damage(
        "no config", lambda f: (f / "config.json").unlink(), "the folder has weights but no config.json", "{f}",
        "download config.json into it, too",
    ),
    Damage(
        "config is not JSON", text("config.json", b"model: x"),
        "the file is not JSON: Expecting value: line 1 column 1 (char 0)", "{f}/config.json",
    ),
    Damage("config is a list", text("config.json", b"[1]"), "the file is not a JSON object", "{f}/config.json"),
    Damage("config is a folder", as_folder("config.json"), "the file can't be read: Is a directory", "{f}/config.json", GIVE_FOLDER),
    Damage("config is a dead link", lambda f: [(f / "config.json").unlink(), (f / "config.json").symlink_to("blob")],
        "the file is a link to a file that is not there", "{f}/config.json", AGAIN),
    Damage("NaN in the config", field(rms_norm_eps=float("nan")), "nan is not a number above 0", "{f}/config.json, field rms_norm_eps", "correct config.json"),
    Damage("Infinity in the config", field(rope_theta=float("inf")), "inf is not a number above 0", "{f}/config.json, field rope_theta", "correct config.json"),
    Damage("NaN as a size", field(hidden_size=float("nan")), "nan is not a whole number from 1", "{f}/config.json, field hidden_size", "correct config.json"),
    Damage("another width", field(hidden_size=41), "the shape is [67, 40], not [67, 41]", "{f}/" + SINGLE + ", tensor model.embed_tokens.weight", OTHER),
    Damage("more experts", field(n_routed_experts=8), "the shape is [6, 40], not [8, 40]", "{f}/" + SINGLE + ", tensor model.layers.1.mlp.gate.weight", OTHER),
    Damage("no biases", field(attention_bias=False),
        "the model has no such tensor", "{f}/" + SINGLE + ", tensor model.layers.0.self_attn.q_a_proj.bias", OTHER),
)  # fmt: skip

ALL = (*HEADERS, *TENSORS, *FILES, *CONFIGS)


@pytest.mark.parametrize("damage", ALL, ids=lambda d: d.name)
def test_refused(damage: Damage, tmp_path: Path) -> None:
    folder = write(tmp_path / "model", WEIGHTS)
    damage.make(folder)
    with pytest.raises(DeepZigError) as error:
        fuse(folder, Options())
    where = damage.where.replace("{f}", str(folder))
    assert str(error.value) == f"{damage.what}\n  at: {where}\n  fix: {damage.hint}"
    assert len(str(error.value).splitlines()) == 3


def test_each_in_a_way_of_its_own() -> None:
    assert len({d.name for d in ALL}) == len(ALL) >= 60


def test_undamaged(tmp_path: Path) -> None:
    fuse(write(tmp_path, WEIGHTS, shards=3), Options())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
@pytest.mark.parametrize("name", [SINGLE, "config.json"])
def test_files_that_may_not_be_read(name: str, tmp_path: Path) -> None:
    folder = write(tmp_path, WEIGHTS)
    (folder / name).chmod(0)
    with pytest.raises(DeepZigError, match="the file can't be read: Permission denied"):
        fuse(folder, Options())


@pytest.mark.parametrize("name", [SINGLE, "config.json"])
def test_files_that_the_system_refuses(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path, WEIGHTS)
    opened = Path.open

    def refuse(path: Path, *args: Any, **options: Any) -> Any:
        if path.name == name:
            raise PermissionError(13, "Permission denied")
        return opened(path, *args, **options)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DeepZigError) as error:
        fuse(folder, Options())
    assert (error.value.what, error.value.where) == ("the file can't be read: Permission denied", f"{folder / name}")


def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    folder = write(tmp_path, WEIGHTS)
    _, checkpoint, _ = fuse(folder, Options())
    os.truncate(folder / SINGLE, (folder / SINGLE).stat().st_size - 5)
    with pytest.raises(DeepZigError) as error:
        checkpoint.read(HEAD)
    assert error.value.what == "the file became shorter while it was read"
    assert error.value.where == f"{folder / SINGLE}, tensor {HEAD}"
    (folder / SINGLE).unlink()
    with pytest.raises(DeepZigError, match="the file can't be read: No such file or directory"):
        checkpoint.read(HEAD)


def test_a_huge_index_is_read_in_a_moment(tmp_path: Path) -> None:
    """And a header is never read beyond the format's limit."""
    write(tmp_path, WEIGHTS, shards=3)
    names = {f"model.layers.{i}.x": SHARD for i in range(200_000)}
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": names}))
    with pytest.raises(DeepZigError) as error:
        fuse(tmp_path, Options())
    assert error.value.what == "the shard lacks a tensor that the index names"
    sparse = tmp_path / SINGLE
    with sparse.open("wb") as file:
        file.write((MAX_HEADER + 1).to_bytes(8, "little"))
        file.truncate(MAX_HEADER + 1000)
    with pytest.raises(DeepZigError) as error:
        fuse(tmp_path, Options())
    assert error.value.what == f"the header claims {MAX_HEADER + 1} bytes, the file has {MAX_HEADER + 1000}"


@pytest.mark.parametrize(
    ("make", "what", "hint"),
    [
        (lambda f: None, "there is no such folder", GIVE_FOLDER),
        (lambda f: f.write_bytes(b"x"), "that is a file, not a checkpoint folder", "name a folder that holds config.json, such as {p}"),
        (lambda f: write(f / "inner", WEIGHTS), "the folder has no config.json, but a folder in it has", "name that one: {f}/inner"),
        (
            lambda f: write(f / "snapshots" / "ab12", WEIGHTS), "the folder is a model in Hugging Face's cache",
            "name the snapshot in it: {f}/snapshots/ab12",
        ),
        (lambda f: [f.mkdir(), (f / "manifest.json").touch()], "the folder is an artifact, compiled already", "run it: deepzig run {f}"),
        (
            lambda f: [f.mkdir(), (f / "adapter_config.json").touch()], "the folder holds an adapter, not a whole model",
            "merge it into its base model first",
        ),
    ],
)  # fmt: skip
def test_what_is_no_checkpoint(make: Callable[[Path], object], what: str, hint: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    make(folder)
    with pytest.raises(DeepZigError) as error:
        fuse(folder, Options())
    told = hint.format(f=folder, p=tmp_path)
    assert str(error.value) == f"{what}\n  at: {folder}\n  fix: {told}"
