"""Warnings, logged at the start, about addresses that are open to others."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path

from twisted.internet.address import UNIXAddress
from twisted.internet.interfaces import IAddress

from cartd.config import UNIX, Network

LOOPBACK = (ip_network("127.0.0.0/8"), ip_network("::1/128"))
ENCRYPTED = ("ssl:", "tls:")


def startup_warnings(
    listening: Sequence[tuple[str, IAddress]],
    *,
    auth_enabled: bool,
    tokens: bool,
    proxies: Sequence[Network] = (),
) -> Iterator[str]:
    """Yield one line for each danger.

    ``listening``: endpoints with the addresses that they bound; ``proxies``: the trusted ones.
    """
    yield from _local_account_warnings([address for _, address in listening], auth_enabled, proxies)
    exposed = [(endpoint, address) for endpoint, address in listening if _is_exposed(address)]
    if exposed and not auth_enabled:
        yield (
            f"Any client that reaches {_listed(exposed)} may post, download and delete every cart:"
            " [auth] is off (docs/authentication.md). Requests with a host name that is not in"
            " [server] allowed_hosts get 421"
        )
    plain = [
        (endpoint, address)
        for endpoint, address in exposed
        if not endpoint.removeprefix("haproxy:").startswith(ENCRYPTED)
    ]
    if plain and tokens:
        yield (
            f"Tokens sent to {_listed(plain)} are not encrypted: use TLS (an ssl: endpoint), or a"
            " loopback address behind a proxy with TLS"
        )


def _local_account_warnings(
    addresses: Sequence[IAddress], auth_enabled: bool, proxies: Sequence[Network]
) -> Iterator[str]:
    """Yield warnings about what every local account may do."""
    open_sockets = ", ".join(_world_writable_sockets(addresses))
    if open_sockets and not auth_enabled:
        yield (
            f"Every local account may post, download and delete every cart through {open_sockets},"
            " which is world-writable: add mode=660 to the endpoint, or enable [auth]"
        )
    ways = [open_sockets] if open_sockets and UNIX in proxies else []
    if any(map(_is_loopback, proxies)) and any(map(_accepts_loopback, addresses)):
        ways.append("a loopback address, which trusted_proxies includes")
    if ways:
        yield (
            f"Every local account may impersonate any user with proxy_header through"
            f" {' and '.join(ways)}: let the proxy connect to a unix: endpoint with mode=660"
            " and a group of its own (docs/authentication.md)"
        )


def _world_writable_sockets(addresses: Iterable[IAddress]) -> Iterator[str]:
    for address in addresses:
        if isinstance(address, UNIXAddress) and address.name:
            path = os.fsdecode(address.name)
            try:
                mode = Path(path).stat().st_mode
            except OSError:  # an abstract socket has no file
                continue
            if mode & stat.S_IWOTH:
                yield path


def _is_loopback(network: Network) -> bool:
    if isinstance(network, IPv4Network | IPv6Network):
        # overlaps() raises TypeError for networks of different IP versions.
        return any(network.version == own.version and network.overlaps(own) for own in LOOPBACK)
    return False


def _accepts_loopback(address: IAddress) -> bool:
    """Whether the address is a loopback address or includes it."""
    host = getattr(address, "host", None)
    if host is None:
        return False
    found = ip_address(host)
    return found.is_loopback or found.is_unspecified


def _is_exposed(address: IAddress) -> bool:
    """Whether other machines can reach it; a Unix socket is local."""
    host = getattr(address, "host", None)
    return host is not None and not ip_address(host).is_loopback


def _listed(listening: Iterable[tuple[str, IAddress]]) -> str:
    return ", ".join(
        f"{getattr(address, 'host', '')} port {getattr(address, 'port', '')}"
        for _, address in listening
    )
