"""How many clients are connected, in all and from each address."""

from __future__ import annotations

from collections import Counter
from ipaddress import IPv6Address, IPv6Network

from twisted.internet.interfaces import IAddress

NETWORK = 64
"""Bits of an IPv6 address that tell who it is: the rest its owner chooses, for each connection
anew if need be (RFC 8981)."""


class Connections:
    """Counts those who enter and leave."""

    def __init__(self, most: int, most_per_address: int) -> None:
        self._most = most
        self._most_per_address = most_per_address
        self._count = 0
        self._of_address: Counter[str] = Counter()

    def enter(self, address: IAddress | None) -> str | None:
        """Count one more client, or give the name of the limit that keeps it out."""
        if self._count >= self._most:
            return "max_connections"
        origin = _origin(address)
        if origin is not None:
            if self._of_address[origin] >= self._most_per_address:
                return "max_connections_per_address"
            self._of_address[origin] += 1
        self._count += 1
        return None

    def leave(self, address: IAddress | None) -> None:
        """One who has entered is gone."""
        self._count -= 1
        origin = _origin(address)
        if origin is not None:
            self._of_address[origin] -= 1
            if not self._of_address[origin]:
                del self._of_address[origin]


def _origin(address: IAddress | None) -> str | None:
    """What counts as one address; None for who has none, as on a UNIX socket."""
    host: str | None = getattr(address, "host", None)
    if host is None or ":" not in host:
        return host
    numbers = IPv6Address(host)
    if numbers.ipv4_mapped is not None:
        return str(numbers.ipv4_mapped)
    return str(IPv6Network((numbers, NETWORK), strict=False))
