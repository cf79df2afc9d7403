"""The keys of those who may ask, and what each may take. Files hold hashes: who reads one learns no key."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import secrets
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from deepzig.errors import DeepZigError

log = logging.getLogger(__name__)

PREFIX = "dz-"
"""What the keys that we make begin with, so that a leaked one is recognised."""


class Limits(BaseModel):
    """What a caller may take; None is no limit."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    requests_per_minute: int | None = Field(default=None, ge=1, description="Requests in any 60 seconds.")
    tokens_per_minute: int | None = Field(default=None, ge=1, description="Tokens, both ways, in any 60 seconds.")
    concurrent: int | None = Field(default=None, ge=1, description="Requests at a time.")
    tokens_per_day: int | None = Field(default=None, ge=1, description="Tokens in a day of UTC.")
    tokens_in_all: int | None = Field(default=None, ge=1, description="Tokens, ever.")


class Key(Limits):
    """A key that lets in.

    Attributes:
        name: whose it is; logs, metrics and quotas go by it.
        sha256: hash of the key, in hexadecimal. Keys are random and long, so a slow hash would add nothing.
    """

    name: str = Field(min_length=1, max_length=64, pattern=r"^[\w.@-]+$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class KeyFile(BaseModel):
    """What a file of keys holds."""

    model_config = ConfigDict(strict=True, extra="forbid")

    keys: list[Key]


def hashed(key: str) -> str:
    """The hash of a key, as files have it."""
    return hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()


def new_key() -> str:
    """A key that nobody can guess."""
    return PREFIX + secrets.token_urlsafe(32)


def read_keys(path: Path) -> list[Key]:
    """The keys of a file.

    Raises:
        DeepZigError: it can't be read, or is no file of keys.
    """
    hint = f"make one with: deepzig keys add {path} NAME"
    try:
        keys = KeyFile.model_validate_json(path.read_bytes()).keys
    except OSError as error:
        raise DeepZigError(f"the keys can't be read: {error.strerror}", str(path), hint) from None
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise DeepZigError(f"the file holds no keys: {place or 'JSON'}: {first['msg']}", str(path), hint) from None
    for what in ("name", "sha256"):
        values = [getattr(key, what) for key in keys]
        if twice := next((value for value in values if values.count(value) > 1), None):
            raise DeepZigError(f"two keys have the {what} {twice}", str(path), "remove one of them")
    return keys


def write_keys(path: Path, keys: Iterable[Key]) -> None:
    """Replace a file of keys, at once; only its owner may read it.

    Raises:
        DeepZigError: it can't be written.
    """
    content = {"keys": [{"name": key.name, **key.model_dump(exclude_none=True)} for key in keys]}
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        try:
            with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(json.dumps(content, indent=2) + "\n")
            unfinished.replace(path)
        finally:
            with suppress(FileNotFoundError):
                unfinished.unlink()
    except OSError as error:
        raise DeepZigError(f"the keys can't be written: {error.strerror}", str(path), "choose another file") from None


class Keyring:
    """Keys that let in; without any, and without a file of them, everyone is let in.

    Args:
        keys: that are always there.
        path: a file with more.

    Raises:
        DeepZigError: the file can't be read.
    """

    def __init__(self, keys: Sequence[Key] = (), path: Path | None = None) -> None:
        self._fixed, self._path = tuple(keys), path
        self._read = tuple(read_keys(path)) if path else ()

    @property
    def required(self) -> bool:
        """Whether a key is needed. Where the file has lost its last one, nobody gets in."""
        return bool(self._fixed or self._path)

    def find(self, key: str) -> Key | None:
        """Whose a key is. Takes as long whichever it is, and if it is none."""
        given = hashed(key)
        found = [known for known in (*self._fixed, *self._read) if hmac.compare_digest(given, known.sha256)]
        return found[0] if found else None

    def reload(self) -> None:
        """Read the file again; one that is broken changes nothing."""
        if self._path is None:
            return
        try:
            self._read = tuple(read_keys(self._path))
        except DeepZigError as error:
            log.error("the old keys stay: %s", str(error).replace("\n", ";"))
        else:
            log.info("%d keys from %s", len(self._read), self._path)
