"""The limits of the HTTP server: their values, and the number of connections."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, fields
from ipaddress import IPv6Address, IPv6Network

from twisted.internet.interfaces import IAddress

from cartd.config import Config


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of the HTTP server, by the names of their settings.

    Sizes are bytes, times are seconds.
    """

    max_manifest_size: int
    temp_file_limit: int
    max_header_size: int
    max_headers: int
    header_timeout: float
    body_timeout: float
    idle_timeout: float
    keepalive_timeout: float
    stall_timeout: float
    max_connections: int
    max_connections_per_address: int

    @classmethod
    def of(cls, config: Config) -> Limits:
        return cls(**{field.name: getattr(config, field.name) for field in fields(cls)})


def setting_name(limit: str) -> str:
    """Return the name of a limit's setting, for error messages."""
    return f"server.{limit}"


IPV6_PREFIX = 64
"""Bits of an IPv6 address that identify a client.  It can choose the rest freely, even for each
connection (RFC 8981)."""


class ConnectionLimits:
    """Limits the number of open connections, in total and per client address."""

    def __init__(self, maximum: int, maximum_per_address: int) -> None:
        self._max = maximum
        self._max_per_address = maximum_per_address
        self._count = 0
        self._per_address: Counter[str] = Counter()

    def acquire(self, address: IAddress | None) -> str | None:
        """Count one more connection, or return the name of the limit that it would exceed."""
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
        """Count one connection less, which :meth:`acquire` had counted."""
        self._count -= 1
        counted = _counted_address(address)
        if counted is not None:
            self._per_address[counted] -= 1
            if not self._per_address[counted]:
                del self._per_address[counted]


def _counted_address(address: IAddress | None) -> str | None:
    """Return what counts as one address; None if there is none, as on a Unix socket."""
    host: str | None = getattr(address, "host", None)
    if host is None or ":" not in host:
        return host
    numbers = IPv6Address(host)
    if numbers.ipv4_mapped is not None:
        return str(numbers.ipv4_mapped)
    return str(IPv6Network((numbers, IPV6_PREFIX), strict=False))
