"""Where a request comes from."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import Scope

from deepzig.errors import DeepZigError

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

SUBSCRIBER = 64
"""Bits of an IPv6 address that one subscriber has in common: he may take any address behind them."""


def parse_networks(texts: Sequence[str]) -> tuple[Network, ...]:
    """Networks such as `10.0.0.0/8` or `::1`.

    Raises:
        DeepZigError: one is none.
    """
    try:
        return tuple(ipaddress.ip_network(text) for text in texts)
    except ValueError as error:
        raise DeepZigError(str(error), "option --trusted-proxy", "give addresses such as 10.0.0.0/8") from None


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def caller(scope: Scope, headers: Headers, proxies: Sequence[Network]) -> str:
    """The address that limits count by.

    Trusted proxies tell in X-Forwarded-For whom they speak for, each at the end of what it was told: the last
    that is no trusted proxy is the caller. What stands before may be invented.
    """
    client = scope.get("client")
    hops = [hop.strip() for line in headers.getlist("x-forwarded-for") for hop in line.split(",")]
    address = _address(client[0]) if client else None
    while address and hops and any(address in network for network in proxies):
        told = _address(hops.pop())
        if told is None:
            break
        address = told
    if address is None:
        return "unknown"
    if address.version == 6:
        return str(ipaddress.ip_network((address, SUBSCRIBER), strict=False))
    return str(address)


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
