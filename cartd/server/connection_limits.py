"""How many clients are connected, in all and from each address."""

from __future__ import annotations

from collections import Counter
from ipaddress import IPv6Address, IPv6Network

from twisted.internet.interfaces import IAddress

IPV6_PREFIX = 64
"""Bits of an IPv6 address that tell who it is: the rest its owner chooses, for each connection
anew if need be (RFC 8981)."""


class ConnectionLimits:
    """Counts those who enter and leave."""

    def __init__(self, maximum: int, maximum_per_address: int) -> None:
        self._max = maximum
        self._max_per_address = maximum_per_address
        self._count = 0
        self._per_address: Counter[str] = Counter()

    def acquire(self, address: IAddress | None) -> str | None:
        """Count one more client, or give the name of the limit that keeps it out."""
        if self._count >= self._max:
            return "max_connections"
        counted = _counted_address(address)
        if counted is not None:
            if self._per_address[counted] >= self._max_per_address:
                return "max_connections_per_address"
            self._per_address[counted] += 1
        self._count += 1
        return None

    def release(self, address: IAddress | None) -> None:
        """One who has entered is gone."""
        self._count -= 1
        counted = _counted_address(address)
        if counted is not None:
            self._per_address[counted] -= 1
            if not self._per_address[counted]:
                del self._per_address[counted]


def _counted_address(address: IAddress | None) -> str | None:
    """What counts as one address; None for who has none, as on a UNIX socket."""
    host: str | None = getattr(address, "host", None)
    if host is None or ":" not in host:
        return host
    numbers = IPv6Address(host)
    if numbers.ipv4_mapped is not None:
        return str(numbers.ipv4_mapped)
    return str(IPv6Network((numbers, IPV6_PREFIX), strict=False))
