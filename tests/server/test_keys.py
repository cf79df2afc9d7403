"""Keys: their file, the commands that make it, and reading it again."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from deepzig.errors import DeepZigError
from deepzig.server.keys import Keyring, hashed, read_keys

from ..runtime.conftest import cli

__all__ = ["cli"]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def add(cli: Any, file: Path, name: str, *options: object) -> str:
    code, out, err = cli("keys", "add", file, name, *options)
    assert (code, err) == (0, "")
    return out.strip()


def test_a_key_is_made_listed_and_revoked(cli: Any, file: Path) -> None:
    alice = add(cli, file, "alice", "--requests-per-minute", 60, "--tokens-in-all", 1000)
    bob = add(cli, file, "bob@example.org")
    assert alice != bob and len(alice) > 40
    assert alice not in file.read_text() and hashed(alice) in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert cli("keys", "list", file)[1] == "alice requests_per_minute=60 tokens_in_all=1000\nbob@example.org\n"
    ring = Keyring(path=file)
    found = ring.find(alice)
    assert found and (found.name, found.requests_per_minute, found.concurrent) == ("alice", 60, None)
    assert cli("keys", "revoke", file, "alice")[0] == 0
    assert ring.find(alice)  # until it is told to read the file again
    ring.reload()
    assert ring.find(alice) is None and ring.find(bob)
    cli("keys", "revoke", file, "bob@example.org")
    ring.reload()
    assert ring.find(bob) is None and ring.required  # nobody is let in, rather than everyone


def test_a_broken_file_changes_nothing(cli: Any, file: Path, caplog: pytest.LogCaptureFixture) -> None:
    key = add(cli, file, "alice")
    ring = Keyring(path=file)
    for text in ("{", '{"keys": [{"name": "a"}]}'):
        file.write_text(text)
        ring.reload()
        assert ring.find(key) and "the old keys stay: the file holds no keys" in caplog.text
        caplog.clear()
    file.unlink()
    ring.reload()
    assert ring.find(key) and "No such file" in caplog.text


def test_strange_keys_are_none(cli: Any, file: Path) -> None:
    add(cli, file, "alice")
    ring = Keyring(path=file)
    assert not any(ring.find(key) for key in ("", "\udcff", "\x00", "x" * 100_000))


ENTRY = {"name": "alice", "sha256": "0" * 64}


@pytest.mark.parametrize(
    ("content", "what", "fix"),
    [
        ("[]", "the file holds no keys: JSON: Input should be an object", "make one with: deepzig keys add FILE NAME"),
        (
            {"keys": [{**ENTRY, "sha256": "0"}]},
            "the file holds no keys: keys.0.sha256: String should match pattern '^[0-9a-f]{64}$'",
            "make one with: deepzig keys add FILE NAME",
        ),
        (
            {"keys": [{**ENTRY, "concurrent": 0}]},
            "the file holds no keys: keys.0.concurrent: Input should be greater than or equal to 1",
            "make one with: deepzig keys add FILE NAME",
        ),
        (
            {"keys": [{**ENTRY, "requests": 3}]},
            "the file holds no keys: keys.0.requests: Extra inputs are not permitted",
            "make one with: deepzig keys add FILE NAME",
        ),
        ({"keys": [ENTRY, {**ENTRY, "sha256": "1" * 64}]}, "two keys have the name alice", "remove one of them"),
        ({"keys": [ENTRY, {**ENTRY, "name": "b"}]}, f"two keys have the sha256 {'0' * 64}", "remove one of them"),
    ],
)
def test_files_that_hold_no_keys(content: Any, what: str, fix: str, file: Path) -> None:
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(DeepZigError) as error:
        read_keys(file)
    assert str(error.value) == f"{what}\n  at: {file}\n  fix: {fix.replace('FILE', str(file))}"


def test_commands_that_do_not_fit(cli: Any, file: Path, tmp_path: Path) -> None:
    add(cli, file, "alice")
    before = file.read_bytes()
    told = [
        cli("keys", "add", file, "alice"),
        cli("keys", "add", file, "a b"),
        cli("keys", "revoke", file, "bob"),
        cli("keys", "list", tmp_path / "none"),
        cli("keys", "add", tmp_path / "no" / "folder", "bob"),
    ]
    assert [(code, out) for code, out, _ in told] == [(2, "")] * 5
    assert [err for _, _, err in told] == [
        f"error: alice has a key already\n  at: {file}\n  fix: revoke it first: deepzig keys revoke {file} alice\n",
        "error: 'a b' can't be the name of a key\n  at: argument NAME\n"
        "  fix: use letters, digits, and any of . _ @ -\n",
        f"error: bob has no key\n  at: {file}\n  fix: look for it: deepzig keys list {file}\n",
        f"error: the keys can't be read: No such file or directory\n  at: {tmp_path / 'none'}\n"
        f"  fix: make one with: deepzig keys add {tmp_path / 'none'} NAME\n",
        f"error: the keys can't be written: No such file or directory\n  at: {tmp_path / 'no' / 'folder'}\n"
        "  fix: choose another file\n",
    ]
    assert file.read_bytes() == before and [path.name for path in tmp_path.iterdir()] == ["keys.json"]
