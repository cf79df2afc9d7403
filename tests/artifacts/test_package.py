"""Packed artifacts: what is packed comes out again, weights are mapped in place, and nothing else is taken for one."""

from __future__ import annotations

import io
import os
import stat
import struct
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from deepzig.artifacts import package, parts
from deepzig.artifacts.machines import Machine
from deepzig.artifacts.pack import pack, unpack
from deepzig.artifacts.package import Member, layout, read_package
from deepzig.artifacts.reader import map_weights, open_artifact
from deepzig.errors import DeepZigError

from . import made

MACHINE = Machine("x86_64-linux", frozenset({"avx2", "fma"}))
COPY_AGAIN = "copy the file again, or pack the artifact again"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DEEPZIG_CACHE", str(tmp_path / "cache"))
    return made.write(tmp_path / "artifact", shard_bytes=600)


@pytest.fixture
def packed(folder: Path) -> Path:
    pack(folder, folder.parent / "a.deepzig")
    return folder.parent / "a.deepzig"


def files(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def refusal(path: Path, full: bool = False) -> str:
    with pytest.raises(DeepZigError) as caught:
        open_artifact(path, full, MACHINE)
    return str(caught.value)


def lines(what: str, where: object, hint: str = COPY_AGAIN) -> str:
    return f"{what}\n  at: {where}\n  fix: {hint}"


def test_there_and_back(folder: Path, packed: Path) -> None:
    unpack(packed, folder.parent / "back")
    assert files(folder.parent / "back") == files(folder)
    pack(folder.parent / "back", folder.parent / "b.deepzig")
    assert (folder.parent / "b.deepzig").read_bytes() == packed.read_bytes()


def test_other_tools_read_it(folder: Path, packed: Path) -> None:
    with zipfile.ZipFile(packed) as archive:
        assert archive.testzip() is None
        assert {n: archive.read(n) for n in archive.namelist()} == files(folder)
        assert archive.namelist()[0] == "manifest.json"
        assert all(info.compress_type == zipfile.ZIP_STORED for info in archive.infolist())
        modes = {stat.S_IMODE(info.external_attr >> 16) for info in archive.infolist()}
    assert modes == {0o644}
    assert all(member.begin % 64 == 0 for member in read_package(packed).values())


def test_weights_are_mapped_in_place(packed: Path) -> None:
    artifact = open_artifact(packed, full=True, machine=MACHINE)
    weights = map_weights(artifact)
    assert set(weights) == set(made.WEIGHTS)
    for name, (_, weight) in made.WEIGHTS.items():
        entry, data = weights[name]
        assert data.ctypes.data % 64 == 0 and data.tobytes() == weight.tobytes()
        base = data
        while not isinstance(base, np.memmap):
            base = base.base  # type: ignore[assignment]
        assert Path(base.filename) == packed and entry.begin < packed.stat().st_size  # type: ignore[arg-type]
    assert not list(artifact.folder.rglob("*.safetensors"))


def test_code_is_unpacked_once_and_again_when_it_is_damaged(packed: Path) -> None:
    folder = open_artifact(packed, machine=MACHINE).folder
    assert stat.S_IMODE(folder.parent.stat().st_mode) == 0o700
    code = folder / "code/x86-64-v3.so"
    before = code.stat().st_ino
    assert open_artifact(packed, machine=MACHINE).folder == folder and code.stat().st_ino == before
    right = code.read_bytes()
    code.write_bytes(right[:-1] + b"!")
    open_artifact(packed, machine=MACHINE)
    assert code.read_bytes() == right and code.stat().st_ino != before
    assert not [p for p in folder.rglob("tmp*")]


def test_several_at_once(packed: Path) -> None:
    """All find the parts whole; none leaves anything behind."""
    faults: list[BaseException] = []

    def open_it() -> None:
        try:
            artifact = open_artifact(packed, machine=MACHINE)
            assert (artifact.folder / made.RUNTIME).read_bytes() == b"\x7fELF runtime"
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=open_it) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults


def test_no_room_in_the_cache(packed: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(parts.tempfile, "TemporaryDirectory", full)
    told = refusal(packed)
    assert told.startswith("a part can't be unpacked: No space left on device\n")
    assert told.endswith("\n  fix: make room, or name another folder with DEEPZIG_CACHE")
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("DEEPZIG_CACHE", str(tmp_path / "file"))
    assert refusal(packed) == lines(
        "the cache folder can't be used: Not a directory",
        tmp_path / "file" / "packages",
        "name another folder with DEEPZIG_CACHE",
    )


def test_windows_replaces_no_open_file(
    folder: Path, packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """As there: what is moved is closed, and a part that another process has unpacked and opened is good enough."""

    def move(source: str, target: object) -> None:
        assert str(source) not in {os.readlink(f) for f in Path("/proc/self/fd").iterdir() if f.is_symlink()}
        original(source, target)

    def refuse(source: str, target: Path) -> None:
        original(source, target)
        raise PermissionError(13, "Permission denied")

    original = os.replace
    monkeypatch.setattr(os, "replace", move)
    pack(folder, packed, force=True)
    monkeypatch.setattr(os, "replace", refuse)
    artifact = open_artifact(packed, machine=MACHINE)
    assert (artifact.folder / made.RUNTIME).read_bytes() == b"\x7fELF runtime"


def test_somebody_elses_cache(packed: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    owner = os.getuid() + 1
    monkeypatch.setattr(os, "getuid", lambda: owner)
    assert refusal(packed).startswith("the cache folder belongs to another user\n")


def spoiled(path: Path, change: Callable[[bytearray], object]) -> Path:
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(data)
    return path


def end(data: bytearray) -> int:
    return len(data) - 98


@pytest.mark.parametrize("cut", [1, 50, 98, 99, 1000])
def test_cut_off(packed: Path, cut: int) -> None:
    spoiled(packed, lambda data: data.__delitem__(slice(len(data) - cut, None)))
    assert refusal(packed) == lines("the file is no packed artifact, or is cut off", packed)


@pytest.mark.parametrize("junk", [b"", b"PK", b"\x7fELF", b"x" * 500, b"PK\5\6" + bytes(18)])
def test_something_else(tmp_path: Path, junk: bytes) -> None:
    (tmp_path / "x").write_bytes(junk)
    assert refusal(tmp_path / "x") == lines("the file is no packed artifact, or is cut off", tmp_path / "x")


CUT = "the file is no packed artifact, or is cut off"
ASTRAY = "the list of parts is not where it should be"
OTHER = "the list of parts is not as deepzig pack writes it"
ENDS: list[tuple[str, Callable[[bytearray], object], str]] = [
    ("leading junk", lambda d: d.__setitem__(slice(0, 0), b"#!/bin/sh\n"), ASTRAY),
    ("trailing junk", lambda d: d.extend(b"x"), CUT),
    ("a huge list", lambda d: struct.pack_into("<Q", d, end(d) + 40, 1 << 50), ASTRAY),
    ("a list elsewhere", lambda d: struct.pack_into("<Q", d, end(d) + 48, 64), ASTRAY),
    ("many parts", lambda d: struct.pack_into("<Q", d, end(d) + 32, 1 << 40), OTHER),
    ("a comment", lambda d: struct.pack_into("<H", d, len(d) - 2, 7), OTHER),
    ("two disks", lambda d: struct.pack_into("<H", d, len(d) - 18, 1), OTHER),
]  # fmt: skip


@pytest.mark.parametrize(("change", "what"), [e[1:] for e in ENDS], ids=[e[0] for e in ENDS])
def test_a_wrong_end(change: Callable[[bytearray], object], what: str, packed: Path) -> None:
    assert refusal(spoiled(packed, change)) == lines(what, packed)


def in_list(name: bytes, offset: int, form: str, value: int) -> Callable[[bytearray], object]:
    """Change a field of a part's entry in the list."""

    def change(data: bytearray) -> None:
        struct.pack_into(form, data, data.rindex(name) - 46 + offset, value)

    return change


LISTED: list[tuple[str, Callable[[bytearray], object]]] = [
    ("compressed", in_list(b"code/", 10, "<H", 8)),
    ("encrypted", in_list(b"code/", 8, "<H", 0x801)),
    ("a link", in_list(b"code/", 38, "<I", 0o120777 << 16)),
    ("a folder", in_list(b"code/", 38, "<I", 0o040755 << 16)),
    ("another size", in_list(b"code/", 46 + len("code/x86-64-v3.so") + 4, "<Q", 5)),
    ("another compressed size", in_list(b"code/", 46 + len("code/x86-64-v3.so") + 12, "<Q", 5)),
    ("overlapping", in_list(b"code/", 46 + len("code/x86-64-v3.so") + 20, "<Q", 0)),
    ("a size of 32 bits", in_list(b"code/", 24, "<I", 9)),
    ("another time", in_list(b"code/", 12, "<H", 77)),
    ("an old version", in_list(b"code/", 6, "<H", 10)),
    ("no comment", in_list(b"code/", 32, "<H", 0xFFFF)),
]


@pytest.mark.parametrize("change", [e[1] for e in LISTED], ids=[e[0] for e in LISTED])
def test_a_wrong_entry(change: Callable[[bytearray], object], packed: Path) -> None:
    spoiled(packed, change)
    told = refusal(packed)
    assert told in (
        lines("the list of parts is not as deepzig pack writes it", packed),
        lines("a part is not as the list says", f"{packed}, code/x86-64-v3.so"),
    )


def test_a_list_that_is_no_list(packed: Path) -> None:
    where = lambda data: struct.unpack_from("<Q", data, end(data) + 48)[0]  # noqa: E731
    spoiled(packed, lambda data: struct.pack_into("<H", data, where(data) + 28, 0xFFFF))
    assert refusal(packed) == lines("the list of parts can't be understood", packed)


def test_a_header_that_lies(packed: Path) -> None:
    """The list is right, the header before the part is not: other tools believe one, others the other."""
    spoiled(packed, lambda data: data.__setitem__(slice(30, 43), b"manifest.JSON"))
    assert refusal(packed) == lines("a part is not as the list says", f"{packed}, manifest.json")


def built(path: Path, members: list[tuple[str, bytes]]) -> Path:
    """A package of any names."""
    placed, rest = layout([Member(name, len(data), 0) for name, data in members])
    out = io.BytesIO()
    for (header, _), (_, data) in zip(placed, members, strict=True):
        out.write(header + data)
    path.write_bytes(out.getvalue() + rest)
    return path


def test_a_part_twice(tmp_path: Path) -> None:
    path = built(tmp_path / "x", [("manifest.json", b"{}"), ("a", b"1"), ("a", b"2")])
    assert refusal(path) == lines("a part is there twice", path)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../x", "..\\x", "a\0b", ""])
def test_a_part_outside(name: str, folder: Path, packed: Path) -> None:
    made.edit(folder, lambda m: m["files"].update({name: {"size": 1, "sha256": "0" * 64}}))
    parts_of = {**files(folder), name: b"x"}
    path = built(folder.parent / "x", list(parts_of.items()))
    told = refusal(path)
    hint = "copy or compile the artifact again"
    assert told == lines("a part lies outside the artifact", f"{path}, file {name!r}", hint)
    with pytest.raises(DeepZigError):
        unpack(path, folder.parent / "out")
    assert not (folder.parent / "out").exists() and not (folder.parent / "secret").exists()


def test_a_manifest_is_asked_for(tmp_path: Path) -> None:
    path = built(tmp_path / "x", [("a", b"1")])
    assert refusal(path) == lines("a part is missing", f"{path}, manifest.json", "copy or compile the artifact again")


def test_changed_parts(packed: Path) -> None:
    begin = read_package(packed)["code/x86-64-v3.so"].begin
    spoiled(packed, lambda data: data.__setitem__(begin, data[begin] ^ 1))
    what = "the file was changed: its SHA-256 differs from the manifest's"
    assert refusal(packed) == lines(what, f"{packed}, code/x86-64-v3.so", "copy or compile the artifact again")


def test_changed_weights_are_found_when_asked(packed: Path) -> None:
    member = read_package(packed)["weights-00001.safetensors"]
    last = member.begin + member.size - 40
    spoiled(packed, lambda data: data.__setitem__(last, data[last] ^ 1))
    open_artifact(packed, machine=MACHINE)
    assert "SHA-256 differs" in refusal(packed, full=True)


def test_parts_beyond_4_gib(tmp_path: Path) -> None:
    """64-bit sizes and offsets, without the bytes: the file is sparse."""
    sizes = [("manifest.json", 70), ("w-1.safetensors", 5 << 30), ("w-2.safetensors", (1 << 32) - 1), ("c", 3)]
    placed, rest = layout([Member(name, size, 7) for name, size in sizes])
    with (tmp_path / "x").open("wb") as file:
        for header, member in placed:
            file.seek(member.begin - len(header))
            file.write(header)
        file.seek(member.begin + member.size)
        file.write(rest)
    found = read_package(tmp_path / "x")
    assert [(m.name, m.size) for m in found.values()] == sizes
    assert all(m.begin % 64 == 0 for m in found.values()) and found["c"].begin > 9 << 30
    with zipfile.ZipFile(tmp_path / "x") as archive:
        assert [(i.filename, i.file_size) for i in archive.infolist()] == sizes


def test_what_pack_refuses(folder: Path, packed: Path) -> None:
    def told(*args: object, **options: bool) -> str:
        with pytest.raises(DeepZigError) as caught:
            pack(*args, **options)  # type: ignore[arg-type]
        return str(caught.value)

    out = folder.parent
    assert told(folder, out / "x.zip") == lines(
        "a packed artifact's name ends in .deepzig", out / "x.zip", "call it x.zip.deepzig"
    )
    assert told(folder, packed) == lines("the output exists", packed, "choose another name, or replace it with --force")
    assert told(packed, out / "b.deepzig") == lines("the artifact is packed already", packed, "copy the file")
    (out / "d.deepzig").mkdir()
    assert told(folder, out / "d.deepzig", force=True) == lines(
        "the output exists", out / "d.deepzig", "choose another name"
    )
    pack(folder, packed, force=True)
    (folder / "code/x86-64-v3.so").write_bytes(b"changed")
    assert "the file has 7 bytes" in told(folder, out / "c.deepzig")
    assert not (out / "c.deepzig").exists() and not list(out.glob(".*"))


def test_a_full_disk_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("deepzig.artifacts.pack.write_package", full)
    with pytest.raises(DeepZigError) as caught:
        pack(folder, folder.parent / "x.deepzig")
    what = "the artifact can't be written: No space left on device"
    assert str(caught.value) == lines(what, folder.parent / "x.deepzig", "make room and pack again")
    assert [p.name for p in folder.parent.iterdir()] == ["artifact"]


def test_unpack_wants_a_package(folder: Path, packed: Path) -> None:
    with pytest.raises(DeepZigError, match="the artifact is a folder already"):
        unpack(folder, folder.parent / "x")
    with pytest.raises(DeepZigError, match="the output folder is not empty"):
        unpack(packed, folder)
    assert packed.suffix == package.SUFFIX
