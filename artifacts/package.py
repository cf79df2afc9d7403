"""An artifact in one file: an uncompressed ZIP whose parts begin at multiples of 64 bytes.

Weights are mapped where they lie; any unzip tool can open it. There is one way to write the same parts (APPNOTE.TXT
6.3.10, always with its 64-bit fields), and a reader takes nothing else: the headers are made again from the names,
sizes and checksums that the file lists, and have to be equal, byte for byte.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from deepzig.errors import DeepZigError

SUFFIX = ".deepzig"
ALIGNMENT = 64
COPY_BYTES = 1 << 22
MAX_DIRECTORY = 16 << 20
"""Bytes of the list of parts: over a hundred thousand of them."""

COPY_AGAIN = "copy the file again, or pack the artifact again"

_VERSION, _UTF8 = 45, 0x0800  # 4.5 has 64-bit fields
_DATE = 0x0021  # 1980-01-01, so that the same parts give the same file
_FILL, _MAX32 = 0xD935, 0xFFFFFFFF
_MODE = 0o100644 << 16
_LOCAL = struct.Struct("<4sHHHHHIIIHH")
_CENTRAL = struct.Struct("<4sHHHHHHIIIHHHHHII")
_END64 = struct.Struct("<4sQHHIIQQQQ4sIQI4sHHHHIIH")


@dataclass(frozen=True)
class Member:
    """A part in the file: its bytes are `begin` to `begin + size`."""

    name: str
    size: int
    crc: int
    begin: int = 0


def layout(members: Sequence[Member]) -> tuple[list[tuple[bytes, Member]], bytes]:
    """The headers of parts, each with its part placed behind it, and what follows the last part."""
    at, placed, listed = 0, list[tuple[bytes, Member]](), b""
    for member in members:
        name = member.name.encode()
        wide = struct.pack("<HHQQ", 1, 16, member.size, member.size)
        bare = _LOCAL.size + len(name) + len(wide) + 4
        fill = -(at + bare) % ALIGNMENT
        extra = wide + struct.pack("<HH", _FILL, fill) + bytes(fill)
        common = (_VERSION, _UTF8, 0, 0, _DATE, member.crc, _MAX32, _MAX32, len(name))
        header = _LOCAL.pack(b"PK\3\4", *common, len(extra)) + name + extra
        wide = struct.pack("<HHQQQ", 1, 24, member.size, member.size, at)
        listed += _CENTRAL.pack(b"PK\1\2", 3 << 8 | _VERSION, *common, len(wide), 0, 0, 0, _MODE, _MAX32) + name + wide
        begin = at + len(header)
        placed.append((header, Member(member.name, member.size, member.crc, begin)))
        at = begin + member.size
    count, short = len(members), min(len(members), 0xFFFF)
    end = _END64.pack(
        b"PK\6\6", 44, _VERSION, _VERSION, 0, 0, count, count, len(listed), at,
        b"PK\6\7", 0, at + len(listed), 1,
        b"PK\5\6", 0, 0, short, short, min(len(listed), _MAX32), _MAX32, 0,
    )  # fmt: skip
    return placed, listed + end


def write_package(file: BinaryIO, parts: Sequence[tuple[str, Path]]) -> None:
    """Write parts (name, file) in this order.

    Raises:
        OSError: a file can't be read, or the disk is full.
    """
    placed, rest = layout([Member(name, path.stat().st_size, _crc(path)) for name, path in parts])
    for (header, member), (_, path) in zip(placed, parts, strict=True):
        file.write(header)
        with path.open("rb") as source:
            left = member.size
            while block := source.read(min(COPY_BYTES, left)):
                file.write(block)
                left -= len(block)
        if left:
            raise OSError(0, "a part was changed while it was packed")
    file.write(rest)


def read_package(path: Path) -> dict[str, Member]:
    """The parts of a package, by name; their contents are not looked at.

    Raises:
        DeepZigError: it is not as `write_package` writes it.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            return _read(file, size, str(path))
    except OSError as error:
        raise DeepZigError(f"the file can't be read: {error.strerror}", str(path), "check its permissions") from None


def _read(file: BinaryIO, size: int, where: str) -> dict[str, Member]:
    file.seek(max(size - _END64.size, 0))
    tail = file.read(_END64.size)
    if len(tail) < _END64.size or tail[:4] != b"PK\6\6":
        raise DeepZigError("the file is no packed artifact, or is cut off", where, COPY_AGAIN)
    length, at = _END64.unpack(tail)[8:10]
    if length > MAX_DIRECTORY or at + length + _END64.size != size:
        raise DeepZigError("the list of parts is not where it should be", where, COPY_AGAIN)
    file.seek(at)
    listed = file.read(length)
    members = _listed(listed, where)
    placed, rest = layout(members)
    if rest != listed + tail:
        raise DeepZigError("the list of parts is not as deepzig pack writes it", where, COPY_AGAIN)
    for header, member in placed:
        file.seek(member.begin - len(header))
        if file.read(len(header)) != header:
            raise DeepZigError("a part is not as the list says", f"{where}, {member.name}", COPY_AGAIN)
    found = {member.name: member for _, member in placed}
    if len(found) < len(placed):
        raise DeepZigError("a part is there twice", where, COPY_AGAIN)
    return found


def _listed(data: bytes, where: str) -> list[Member]:
    """What the list says; whether it can be believed, a comparison shows."""
    members, at = [], 0
    try:
        while at < len(data):
            fields = _CENTRAL.unpack_from(data, at)
            begin = at + _CENTRAL.size
            at = begin + fields[10] + fields[11]
            name = data[begin : begin + fields[10]].decode()
            size = struct.unpack_from("<Q", data, begin + fields[10] + 4)[0]
            members.append(Member(name, size, fields[7]))
    except (struct.error, UnicodeDecodeError):
        raise DeepZigError("the list of parts can't be understood", where, COPY_AGAIN) from None
    return members


def _crc(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while block := file.read(COPY_BYTES):
            crc = zlib.crc32(block, crc)
    return crc
