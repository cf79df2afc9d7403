"""Abused artifacts: each is refused before any of its code is loaded, in three lines that say what, where and the mend."""

from __future__ import annotations

import errno
import json
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from deepzig.artifacts.machines import Machine
from deepzig.artifacts.reader import open_artifact
from deepzig.errors import DeepZigError
from deepzig.tensorfile import read_header

from . import made

MACHINE = Machine("x86_64-linux", frozenset({"avx2", "fma"}))
CODE, RUNTIME, MANIFEST, WEIGHTS = "code/x86-64-v3.so", made.RUNTIME, "manifest.json", "weights-00001.safetensors"
COPY, COMPILE, WRITE = (
    "copy or compile the artifact again",
    "compile the model again",
    "download or write the file again",
)
HASH = "0" * 64


@dataclass(frozen=True)
class Abuse:
    """A damage, and the three lines it is refused with; `{root}` is the artifact."""

    name: str
    damage: Callable[[Path], object]
    what: str
    where: str
    hint: str
    full: bool = False


def manifest(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    return lambda root: made.edit(root, change)


def text(change: Callable[[str], str]) -> Callable[[Path], object]:
    return lambda root: (root / MANIFEST).write_text(change((root / MANIFEST).read_text()))


def part(name: str, change: Callable[[bytearray], object], listed: bool = True) -> Callable[[Path], object]:
    """Change a part's bytes; with `listed`, its size and hash in the manifest, too, as a clever enemy would."""

    def damage(root: Path) -> None:
        import hashlib

        data = bytearray((root / name).read_bytes())
        change(data)
        (root / name).write_bytes(data)
        if listed:
            entry = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            made.edit(root, lambda m: m["files"].update({name: entry}))

    return damage


def header(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    """Change the JSON header of the weights."""

    def rewrite(data: bytearray) -> None:
        length = int.from_bytes(data[:8], "little")
        fields = json.loads(data[8 : 8 + length])
        change(fields)
        raw = json.dumps(fields).encode()
        raw += b" " * (-(8 + len(raw)) % 64)
        data[: 8 + length] = struct.pack("<Q", len(raw)) + raw

    return part(WEIGHTS, rewrite)


def linked(name: str, to: str) -> Callable[[Path], object]:
    def damage(root: Path) -> None:
        (root / name).unlink()
        (root / name).symlink_to(to)

    return damage


def fifo(root: Path) -> None:
    (root / CODE).unlink()
    os.mkfifo(root / CODE)


def folder(root: Path) -> None:
    (root / CODE).unlink()
    (root / CODE).mkdir()


def extra(root: Path) -> None:
    """A tensor that nothing asks for."""

    def forget(data: dict[str, Any]) -> None:
        data["weights"] = [w for w in data["weights"] if w["name"] != "norm@raw"]
        for point in data["entry_points"].values():
            point["weights"] = [w for w in point["weights"] if w != "norm@raw"]

    made.edit(root, forget)


def looped(root: Path) -> None:
    (root / "code").rename(root / "code2")
    (root / "code").symlink_to("code")


def listed(name: str) -> Callable[[Path], object]:
    return manifest(lambda m: m["files"].update({name: {"size": 1, "sha256": HASH}}))


def point(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    """Change the entry point `decode`."""
    return manifest(lambda m: change(m["entry_points"]["decode"]))


def field(path: str, value: Any) -> Callable[[Path], object]:
    """Set a field of the manifest, named by keys and indices with dots between."""

    def change(data: Any) -> None:
        *steps, last = path.split(".")
        for step in steps:
            data = data[int(step) if isinstance(data, list) else step]
        data[int(last) if isinstance(data, list) else last] = value

    return manifest(change)


def piped(root: Path) -> None:
    (root / MANIFEST).unlink()
    os.mkfifo(root / MANIFEST)


def hashed(name: str, to: str) -> Callable[[Path], object]:
    """A copy of a part under another name, listed as it should be."""

    def damage(root: Path) -> None:
        data = json.loads((root / MANIFEST).read_text())
        made.edit(root, lambda m: m["files"].update({to: data["files"][name]}))
        if not (root / to).exists():
            (root / to).write_bytes((root / name).read_bytes())

    return damage


def spaces(data: bytearray) -> None:
    """A header of 100 MB, most of it spaces, which are within the format: but it has no tensor at its end."""
    length = int.from_bytes(data[:8], "little")
    data[: 8 + length] = struct.pack("<Q", 100_000_001) + data[8 : 8 + length] + b" " * (100_000_001 - length)


def raw_header(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    """Change the bytes of the header; what follows stays."""

    def rewrite(data: bytearray) -> None:
        length = int.from_bytes(data[:8], "little")
        raw = change(bytes(data[8 : 8 + length]))
        data[: 8 + length] = struct.pack("<Q", len(raw)) + raw

    return part(WEIGHTS, rewrite)


AT = "{root}/manifest.json"
NORM = "{root}/" + WEIGHTS + ", tensor norm@raw"
TOO_LARGE = "shape or data_offsets are too large"
NOT_PLAIN = "the name of a part is not a plain path"
SHA = "the file was changed: its SHA-256 differs from the manifest's"
OUTSIDE = "a part lies outside the artifact"

ABUSES = [
    Abuse("nothing", lambda root: (root / MANIFEST).unlink(), "there is no artifact", "{root}", "make one with deepzig-compile"),
    Abuse("empty manifest", text(lambda t: ""), "the manifest is not JSON", AT, COMPILE),
    Abuse("cut manifest", text(lambda t: t[: len(t) // 2]), "the manifest is not JSON", AT, COMPILE),
    Abuse("manifest with a mark", text(lambda t: "\ufeff" + t), "the manifest is not JSON", AT, COMPILE),
    Abuse("two manifests", text(lambda t: t + t), "the manifest is not JSON", AT, COMPILE),
    Abuse("not UTF-8", lambda root: (root / MANIFEST).write_bytes(b"\xff{}"), "the manifest is not UTF-8", AT, COPY),
    Abuse("huge manifest", lambda root: os.truncate(root / MANIFEST, 1 << 40), "the manifest is too large", AT, COPY),
    Abuse("a list", text(lambda t: "[]"), "the manifest's manifest is not an object", AT, COMPILE),
    Abuse("nested deep", text(lambda t: "[" * 200_000), "the manifest is not JSON", AT, COMPILE),
    Abuse("a huge number", text(lambda t: '{"format": ' + "9" * 5000 + "}"), "the manifest is not JSON", AT, COMPILE),
    Abuse("a key twice", text(lambda t: t.replace('"rows": 96', '"rows": 96, "rows": 97')), "the manifest names a key twice", AT, COMPILE),
    Abuse("another format", manifest(lambda m: m.update(format=2)), "the artifact has format 2, this DeepZig reads 4", AT, "compile the model again with this DeepZig"),
    Abuse("no format", manifest(lambda m: m.pop("format")), "the artifact has format None, this DeepZig reads 4", AT, "compile the model again with this DeepZig"),
    Abuse("no builds", manifest(lambda m: m.update(builds=[])), "the manifest's builds are none", AT, COMPILE),
    Abuse("another CPU", manifest(lambda m: m["builds"][0].update(features=["avx512f"])), "this CPU lacks avx512f, which the artifact needs", "{root}", "deepzig-compile m --target llvm:cpu=native -o DIR"),
    Abuse("another platform", manifest(lambda m: m["builds"][0].update(platform="riscv64-linux")), "the artifact is for riscv64-linux, this machine is x86_64-linux", "{root}", "deepzig-compile m --target llvm:cpu=native -o DIR"),
    Abuse("features that are none", manifest(lambda m: m["builds"][0].update(features="avx2")), "the manifest's builds[0].features is not a list", AT, COMPILE),
    Abuse("no entry point", manifest(lambda m: m["entry_points"].pop("decode")), "the manifest's entry_points lack decode", AT, COMPILE),
    Abuse("a weight that is not listed", manifest(lambda m: m["entry_points"]["decode"]["weights"].append("x@raw")), "the manifest's entry_points.decode.weights name x@raw, which is not listed", AT, COMPILE),
    Abuse("a cache that is not listed", manifest(lambda m: m["entry_points"]["decode"]["states"].append("cache.9")), "the manifest's entry_points.decode.states name cache.9, which is not listed", AT, COMPILE),
    Abuse("a negative bound", manifest(lambda m: m["bounds"].update(rows=-1)), "the manifest's bounds.rows is not a whole number from 1", AT, COMPILE),
    Abuse("no page", manifest(lambda m: m["bounds"].update(page_size=0)), "the manifest's bounds.page_size is not a whole number from 1", AT, COMPILE),
    Abuse("half a row", manifest(lambda m: m["bounds"].update(rows=96.5)), "the manifest's bounds.rows is not a whole number from 1", AT, COMPILE),
    Abuse("more chunk than rows", manifest(lambda m: m["bounds"].update(chunk=97)), "the manifest's bounds.rows is less than a chunk", AT, COMPILE),
    Abuse("a negative shape", manifest(lambda m: m["weights"][0].update(shape=[-7])), "the manifest's weights norm@raw shape is not a whole number from 1", AT, COMPILE),
    Abuse("a shape of text", manifest(lambda m: m["weights"][0].update(shape=["n"])), "the manifest's weights norm@raw shape is not fixed", AT, COMPILE),
    Abuse("an unknown type", manifest(lambda m: m["cache"][0].update(dtype="f64")), "the manifest's cache cache.0 has an unknown type 'f64'", AT, COMPILE),
    Abuse("a bad hash", manifest(lambda m: m["files"][CODE].update(sha256="00")), f"the manifest's files.{CODE} has no SHA-256", AT, COMPILE),
    Abuse("a weight more in the manifest", manifest(lambda m: m["weights"].append({"name": "x@raw", "dtype": "f32", "shape": [3]})), "a weight is missing", "{root}, tensor x@raw", COPY),
    Abuse("code that is not listed", manifest(lambda m: m["files"].pop(CODE)), f"the manifest does not list {CODE}", AT, COPY),
    Abuse("a runtime that is not listed", manifest(lambda m: m["files"].pop(RUNTIME)), f"the manifest does not list {RUNTIME}", AT, COPY),
    Abuse("a path upwards", listed("../secret"), OUTSIDE, "{root}/manifest.json, file '../secret'", COPY),
    Abuse("a path upwards within", listed("a/../../secret"), OUTSIDE, "{root}/manifest.json, file 'a/../../secret'", COPY),
    Abuse("an absolute path", listed("/etc/passwd"), OUTSIDE, "{root}/manifest.json, file '/etc/passwd'", COPY),
    Abuse("a path of Windows", listed("a\\b"), OUTSIDE, "{root}/manifest.json, file 'a\\\\b'", COPY),
    Abuse("a drive", listed("C:\\x"), OUTSIDE, "{root}/manifest.json, file 'C:\\\\x'", COPY),
    Abuse("a zero byte in a name", listed("a\0b"), OUTSIDE, "{root}/manifest.json, file 'a\\x00b'", COPY),
    Abuse("no name", listed(""), OUTSIDE, "{root}/manifest.json, file ''", COPY),
    Abuse("a name too long", listed("x" * 5000), "a part can't be found: File name too long", "{root}/" + "x" * 5000, COPY),
    Abuse("a part that is not there", listed("more.bin"), "a part is missing", "{root}/more.bin", COPY),
    Abuse("a link to a file", linked(CODE, "/bin/true"), "a part is a symbolic link", "{root}/" + CODE, "copy the file itself"),
    Abuse("a broken link", linked(RUNTIME, "nowhere"), "a part is a symbolic link", "{root}/" + RUNTIME, "copy the file itself"),
    Abuse("a link to itself", looped, "a part is a symbolic link", "{root}/code", "copy the file itself"),
    Abuse("a pipe", fifo, "a part is not a plain file", "{root}/" + CODE, COPY),
    Abuse("a folder", folder, "a part is not a plain file", "{root}/" + CODE, COPY),
    Abuse("empty code", part(CODE, lambda d: d.clear(), listed=False), "the file has 0 bytes, not 9", "{root}/" + CODE, COPY),
    Abuse("longer code", part(CODE, lambda d: d.extend(b"x"), listed=False), "the file has 10 bytes, not 9", "{root}/" + CODE, COPY),
    Abuse("a bit of code", part(CODE, lambda d: d.__setitem__(3, d[3] ^ 4), listed=False), SHA, "{root}/" + CODE, COPY),
    Abuse("a bit of the runtime", part(RUNTIME, lambda d: d.__setitem__(3, d[3] ^ 4), listed=False), SHA, "{root}/" + RUNTIME, COPY),
    Abuse("a bit of a weight", part(WEIGHTS, lambda d: d.__setitem__(-9, d[-9] ^ 1), listed=False), SHA, "{root}/" + WEIGHTS, COPY, full=True),
    Abuse("no weights", part(WEIGHTS, lambda d: d.clear()), "the file has 0 bytes, too few for safetensors", "{root}/" + WEIGHTS, WRITE),
    Abuse("cut weights", part(WEIGHTS, lambda d: d.__delitem__(slice(len(d) - 64, None))), "the file ends 26 bytes before the tensor does", "{root}/" + WEIGHTS + ", tensor scales@raw", WRITE),
    Abuse("weights and more", part(WEIGHTS, lambda d: d.extend(b"\0" * 7)), "7 bytes follow the last tensor", "{root}/" + WEIGHTS, WRITE),
    Abuse("a huge header", part(WEIGHTS, lambda d: d.__setitem__(slice(0, 8), struct.pack("<Q", 1 << 60))), f"the header claims {1 << 60} bytes, the file has 1728", "{root}/" + WEIGHTS, WRITE),
    Abuse("a header that is none", part(WEIGHTS, lambda d: d.__setitem__(8, 0)), "the header is not JSON", "{root}/" + WEIGHTS, WRITE),
    Abuse("a tensor less", header(lambda h: h.pop("norm@raw")), "the tensor does not start where the one before ends", "{root}/" + WEIGHTS + ", tensor _pad.1", WRITE),
    Abuse("a negative size", header(lambda h: h["norm@raw"].update(shape=[-7])), "shape or data_offsets are not whole numbers from 0", "{root}/" + WEIGHTS + ", tensor norm@raw", WRITE),
    Abuse("a shape that overflows", header(lambda h: h["norm@raw"].update(shape=[1 << 62, 1 << 62])), "28 bytes are not F32[4611686018427387904, 4611686018427387904]", "{root}/" + WEIGHTS + ", tensor norm@raw", WRITE),
    Abuse("tensors that overlap", header(lambda h: h["_pad.1"].update(data_offsets=[0, 36])), "the tensor does not start where the one before ends", "{root}/" + WEIGHTS + ", tensor _pad.1", WRITE),
    Abuse("an unknown stored type", header(lambda h: h["norm@raw"].update(dtype="F128")), "the element type 'F128' is unknown", "{root}/" + WEIGHTS + ", tensor norm@raw", "write the tensor in a known type"),
    Abuse("another stored type", header(lambda h: h["norm@raw"].update(dtype="I32")), "a weight is I32[7], not F32[7]", "{root}/" + WEIGHTS + ", tensor norm@raw", COPY),
    Abuse("a weight more in the file", extra, "a weight is not in the manifest", "{root}, tensor norm@raw", COPY),
    Abuse("weights that are not aligned", part(WEIGHTS, lambda d: shifted(d)), "a weight is not aligned to 64 bytes", "{root}/" + WEIGHTS + ", tensor norm@raw", COPY),
    Abuse("weights twice", lambda root: twice(root), "a weight is in two files", "{root}/weights-00002.safetensors, tensor norm@raw", COPY),
    Abuse("a manifest that is a pipe", piped, "a part is not a plain file", AT, COPY),
    Abuse("a manifest that is a link to a device", linked(MANIFEST, "/dev/zero"), "a part is a symbolic link", AT, "copy the file itself"),
    Abuse("not a number", text(lambda t: t.replace('"weights_bytes": 1100', '"weights_bytes": NaN')), "the manifest has a number that is not finite", AT, COMPILE),
    Abuse("infinity", text(lambda t: t.replace('"created_by": "a test"', '"created_by": -Infinity')), "the manifest has a number that is not finite", AT, COMPILE),
    Abuse("a number that becomes infinity", text(lambda t: t.replace('"name": "m"', '"name": 1e999')), "the manifest has a number that is not finite", AT, COMPILE),
    Abuse("half a character", text(lambda t: t.replace('"name": "m"', '"name": "\\ud800"')), "the manifest has a text that is not Unicode", AT, COMPILE),
    Abuse("a line end in a name", point(lambda p: p["states"].append("a\nb\x1b[2J")), "the manifest's entry_points.decode.states name a\\nb\\x1b[2J, which is not listed", AT, COMPILE),
    Abuse("terabytes in a page", field("cache.0.shape", ["pages", 1 << 20, 1 << 20]), "the manifest's cache cache.0 has pages of more than 1073741824 bytes", AT, COMPILE),
    Abuse("a cache without pages", field("cache.0.shape", [16, 48]), "the manifest's cache cache.0 shape is not a number of pages, then fixed", AT, COMPILE),
    Abuse("a cache of no dimension", field("cache.0.shape", []), "the manifest's cache cache.0 shape is not a number of pages, then fixed", AT, COMPILE),
    Abuse("a cache that grows twice", field("cache.0.shape", ["pages", "pages", 4]), "the manifest's cache cache.0 shape is not a number of pages, then fixed", AT, COMPILE),
    Abuse("a page of millions of tokens", field("bounds.page_size", 1 << 40), "the manifest's bounds.page_size is larger than 65536", AT, COMPILE),
    Abuse("positions beyond i32", field("bounds.positions", 1 << 31), "the manifest's bounds.positions is larger than 2147483647", AT, COMPILE),
    Abuse("a billion rows", field("bounds.rows", 10**9), "the manifest's bounds.rows is larger than 1048576", AT, COMPILE),
    Abuse("a vocabulary beyond i32", field("model.vocab_size", 1 << 31), "the manifest's model.vocab_size is larger than 2147483647", AT, COMPILE),
    Abuse("an end beyond the vocabulary", field("model.eos_token_ids", [1, 11]), "the manifest's model.eos_token_ids name 11, beyond a vocabulary of 11", AT, COMPILE),
    Abuse("a dimension beyond all", field("weights.0.shape", [1 << 62]), "the manifest's weights norm@raw shape is larger than 9007199254740991", AT, COMPILE),
    Abuse("dimensions beyond all", field("weights.0.shape", [1 << 40, 1 << 40]), "the manifest's weights norm@raw shape is too large", AT, COMPILE),
    Abuse("a dimension of zero", field("weights.0.shape", [0]), "the manifest's weights norm@raw shape is not a whole number from 1", AT, COMPILE),
    Abuse("too many dimensions", field("weights.0.shape", [1] * 17), "the manifest's weights norm@raw shape has more than 16 dimensions", AT, COMPILE),
    Abuse("a weight without a name", field("weights.0.name", ""), "the manifest's weights name is empty", AT, COMPILE),
    Abuse("a weight listed twice", manifest(lambda m: m["weights"].append(m["weights"][0])), "the manifest's weights name norm@raw twice", AT, COMPILE),
    Abuse("a cache listed twice", manifest(lambda m: m["cache"].append(m["cache"][0])), "the manifest's cache name cache.0 twice", AT, COMPILE),
    Abuse("a build listed twice", manifest(lambda m: m["builds"].append(m["builds"][0])), "the manifest's builds name x86-64-v3 twice", AT, COMPILE),
    Abuse("an input twice", point(lambda p: p["inputs"].append(p["inputs"][0])), "the manifest's entry_points.decode.inputs name tokens twice", AT, COMPILE),
    Abuse("an input less", point(lambda p: p["inputs"].pop()), "the manifest's entry_points.decode.inputs lack out_rows, i32 with 1 dimensions", AT, COMPILE),
    Abuse("an input of another type", point(lambda p: p["inputs"][0].update(dtype="f32")), "the manifest's entry_points.decode.inputs lack tokens, i32 with 1 dimensions", AT, COMPILE),
    Abuse("an input of other dimensions", point(lambda p: p["inputs"][3].update(shape=["b"])), "the manifest's entry_points.decode.inputs lack block_table, i32 with 2 dimensions", AT, COMPILE),
    Abuse("logits of another size", point(lambda p: p["outputs"][0].update(shape=["r", 12])), "the manifest's entry_points.decode.outputs logits are not of the vocabulary's size", AT, COMPILE),
    Abuse("calls of nothing", field("builds.0.calls.train", []), "the manifest's builds[0].calls name train, which is no entry point", AT, COMPILE),
    Abuse("weights for code", field("builds.0.code", WEIGHTS), "the manifest's builds[0].code is a weight file", AT, COMPILE),
    Abuse("weights for a library", field("builds.0.libraries", [WEIGHTS]), "the manifest's builds[0].libraries is a weight file", AT, COMPILE),
    Abuse("a library twice", field("builds.0.libraries", [RUNTIME]), f"the manifest's builds[0].libraries name {RUNTIME} twice", AT, COMPILE),
    Abuse("a library that is not there", field("builds.0.libraries", ["lib/x.so"]), "the manifest does not list lib/x.so", AT, COPY),
    Abuse("a library in no list", field("builds.0.libraries", "lib/x.so"), "the manifest's builds[0].libraries is not a list", AT, COMPILE),
    Abuse("a device without a name", field("builds.0.device", ""), "the manifest's builds[0].device is empty", AT, COMPILE),
    Abuse("a device of tomorrow", field("builds.0.device", "tpu"), "the manifest's builds[0].device is 'tpu', which this DeepZig does not know", AT, COMPILE),
    Abuse("the dot", listed("."), OUTSIDE, "{root}/manifest.json, file '.'", COPY),
    Abuse("a drive without a slash", listed("C:x"), OUTSIDE, "{root}/manifest.json, file 'C:x'", COPY),
    Abuse("a detour", hashed(CODE, "./" + CODE), NOT_PLAIN, "{root}/manifest.json, file './" + CODE + "'", COPY),
    Abuse("two slashes", hashed(CODE, CODE.replace("/", "//")), NOT_PLAIN, "{root}/manifest.json, file '" + CODE.replace("/", "//") + "'", COPY),
    Abuse("a command to the terminal in a name", listed("a\x1b[2Jb"), NOT_PLAIN, "{root}/manifest.json, file 'a\\x1b[2Jb'", COPY),
    Abuse("a name in other letters", listed(CODE.upper()), f"the manifest's files name {CODE} and {CODE.upper()}, which are one file on some systems", AT, COMPILE),
    Abuse("a header of too many spaces", part(WEIGHTS, spaces), "the header claims 100000001 bytes, the file has 100001225", "{root}/" + WEIGHTS, WRITE),
    Abuse("a header with a mark", raw_header(lambda raw: b"\xef\xbb\xbf" + raw), "the header is not JSON", "{root}/" + WEIGHTS, WRITE),
    Abuse("a header in UTF-16", raw_header(lambda raw: raw.decode().encode("utf-16-le")), "the header is not JSON", "{root}/" + WEIGHTS, WRITE),
    Abuse("a header with infinity", raw_header(lambda raw: raw.replace(b"[7]", b"[Infinity]")), "the header is not JSON", "{root}/" + WEIGHTS, WRITE),
    Abuse("a tensor named by half a character", raw_header(lambda raw: raw.replace(b"norm@raw", b"norm\\udfff")), "the header is not JSON", "{root}/" + WEIGHTS, WRITE),
    Abuse("a tensor twice", raw_header(lambda raw: raw.replace(b"embed@raw", b"norm@raw")), "the header names 'norm@raw' twice", "{root}/" + WEIGHTS, WRITE),
    Abuse("a header that is a list", raw_header(lambda raw: b"[" + raw.strip() + b"]"), "the header is not a JSON object", "{root}/" + WEIGHTS, WRITE),
    Abuse("a tensor without offsets", header(lambda h: h["norm@raw"].pop("data_offsets")), "the header entry lacks dtype, shape or data_offsets", NORM, WRITE),
    Abuse("a shape that is a text", header(lambda h: h["norm@raw"].update(shape="")), "the header entry lacks dtype, shape or data_offsets", NORM, WRITE),
    Abuse("an offset that is too large", header(lambda h: h["norm@raw"].update(data_offsets=[0, 1 << 63])), TOO_LARGE, NORM, WRITE),
    Abuse("a shape that takes for ever", header(lambda h: h["norm@raw"].update(shape=[1 << 62] * 300_000)), TOO_LARGE, NORM, WRITE),
]  # fmt: skip


def shifted(data: bytearray) -> None:
    """One more space in the header."""
    length = int.from_bytes(data[:8], "little")
    data[: 8 + length] = struct.pack("<Q", length + 1) + data[8 : 8 + length] + b" "


def twice(root: Path) -> None:
    entry = json.loads((root / MANIFEST).read_text())["files"][WEIGHTS]
    (root / "weights-00002.safetensors").write_bytes((root / WEIGHTS).read_bytes())
    made.edit(root, lambda m: m["files"].update({"weights-00002.safetensors": entry}))


def test_there_are_many() -> None:
    assert len({abuse.name for abuse in ABUSES}) == len(ABUSES) == 118


@pytest.mark.parametrize("abuse", ABUSES, ids=[a.name for a in ABUSES])
def test_it_is_refused(abuse: Abuse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ctypes

    def loaded(*args: object, **kwargs: object) -> None:
        raise AssertionError("code was loaded")

    root = made.write(tmp_path / "artifact")
    open_artifact(root, full=True, machine=MACHINE)
    abuse.damage(root)
    monkeypatch.setattr(ctypes, "CDLL", loaded)
    with pytest.raises(DeepZigError) as caught:
        open_artifact(root, abuse.full, MACHINE)
    where = abuse.where.replace("{root}", str(root))
    assert str(caught.value) == f"{abuse.what}\n  at: {where}\n  fix: {abuse.hint}"


@pytest.mark.parametrize("name", [MANIFEST, CODE, WEIGHTS])
def test_a_part_that_may_not_be_read(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulated: root may read everything."""
    root = made.write(tmp_path / "artifact")
    opened = Path.open

    def refuse(path: Path, *args: Any, **kwargs: Any) -> Any:
        if path == root / name:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return opened(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DeepZigError) as caught:
        open_artifact(root, machine=MACHINE)
    hint = "check the path" if name == WEIGHTS else "check its permissions"
    assert str(caught.value) == f"the file can't be read: Permission denied\n  at: {root / name}\n  fix: {hint}"


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(DeepZigError) as caught:
        read_header(tmp_path / "pipe.safetensors")
    assert str(caught.value) == f"the file is not a plain file\n  at: {tmp_path}/pipe.safetensors\n  fix: {WRITE}"


@pytest.mark.parametrize("size", ["nothing", "half", "all but one"])
@pytest.mark.parametrize("name", [CODE, RUNTIME, WEIGHTS])
def test_truncated_parts(name: str, size: str, tmp_path: Path) -> None:
    root = made.write(tmp_path / "artifact")
    whole = (root / name).stat().st_size
    left = {"nothing": 0, "half": whole // 2, "all but one": whole - 1}[size]
    os.truncate(root / name, left)
    with pytest.raises(DeepZigError) as caught:
        open_artifact(root, machine=MACHINE)
    assert str(caught.value) == f"the file has {left} bytes, not {whole}\n  at: {root / name}\n  fix: {COPY}"
