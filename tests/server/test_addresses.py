"""Whose address a request is counted by."""

from __future__ import annotations

import pytest
from starlette.datastructures import Headers

from deepzig.errors import DeepZigError
from deepzig.server.addresses import caller, is_loopback, parse_networks

PROXIES = parse_networks(["10.0.0.0/8", "fd00::/8"])


@pytest.mark.parametrize(
    ("client", "forwarded", "address"),
    [
        ("192.0.2.1", [], "192.0.2.1"),
        ("192.0.2.1", ["198.51.100.7"], "192.0.2.1"),  # anyone can send it
        ("10.1.2.3", ["198.51.100.7"], "198.51.100.7"),
        ("10.1.2.3", ["1.1.1.1, 198.51.100.7"], "198.51.100.7"),  # what stands before may be invented
        ("10.1.2.3", ["1.1.1.1, 198.51.100.7", "10.9.9.9"], "198.51.100.7"),
        ("10.1.2.3", ["10.4.4.4"], "10.4.4.4"),
        ("10.1.2.3", ["nonsense"], "10.1.2.3"),
        ("10.1.2.3", [""], "10.1.2.3"),
        ("fd00::1", ["2001:db8:1:2:3::4"], "2001:db8:1:2::/64"),
        ("::ffff:192.0.2.1", [], "192.0.2.1"),
        (None, ["198.51.100.7"], "unknown"),
    ],
)
def test_caller(client: str | None, forwarded: list[str], address: str) -> None:
    headers = Headers(raw=[(b"x-forwarded-for", line.encode()) for line in forwarded])
    assert caller({"client": client and (client, 5)}, headers, PROXIES) == address


def test_what_is_no_network() -> None:
    with pytest.raises(DeepZigError) as error:
        parse_networks(["10.0.0.1/8"])
    assert str(error.value) == (
        "10.0.0.1/8 has host bits set\n  at: option --trusted-proxy\n  fix: give addresses such as 10.0.0.0/8"
    )


@pytest.mark.parametrize(
    ("host", "alone"), [("127.0.0.2", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("a.b", False)]
)
def test_loopback(host: str, alone: bool) -> None:
    assert is_loopback(host) is alone
