"""What a site should know about the addresses on which it listens."""

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
    """One line for each danger.

    ``listening`` are endpoints, and the addresses that they bound; from ``proxies`` it is believed
    who asks.
    """
    yield from _local_account_warnings([address for _, address in listening], auth_enabled, proxies)
    exposed = [(endpoint, address) for endpoint, address in listening if _is_exposed(address)]
    if exposed and not auth_enabled:
        yield (
            f"Whoever reaches {_shown(exposed)} may post, download and delete every cart:"
            " [auth] in the configuration is off (docs/authentication.md); who asks by a name that"
            " is not in [server] allowed_hosts is answered with 421"
        )
    plain = [
        (endpoint, address)
        for endpoint, address in exposed
        if not endpoint.removeprefix("haproxy:").startswith(ENCRYPTED)
    ]
    if plain and tokens:
        yield (
            f"Tokens that are sent to {_shown(plain)} can be read on their way: listen there"
            " with TLS (an ssl: endpoint), or on a loopback address behind a gateway with TLS"
        )


def _local_account_warnings(
    addresses: Sequence[IAddress], auth_enabled: bool, proxies: Sequence[Network]
) -> Iterator[str]:
    """What every account of this machine may do."""
    open_sockets = ", ".join(_world_writable_sockets(addresses))
    if open_sockets and not auth_enabled:
        yield (
            f"Every account of this machine may post, download and delete every cart by"
            f" {open_sockets}, whose mode lets all connect: write mode=660 into the endpoint, or"
            " set [auth]"
        )
    ways = [open_sockets] if open_sockets and UNIX in proxies else []
    if any(map(_is_loopback, proxies)) and any(map(_accepts_loopback, addresses)):
        ways.append("a loopback address, which trusted_proxies trusts")
    if ways:
        yield (
            f"Every account of this machine may name any user in proxy_header by"
            f" {' and by '.join(ways)}: let the proxy connect to a unix: endpoint with mode=660"
            " and a group of its own (docs/authentication.md)"
        )


def _world_writable_sockets(addresses: Iterable[IAddress]) -> Iterator[str]:
    for address in addresses:
        if isinstance(address, UNIXAddress) and address.name:
            path = os.fsdecode(address.name)
            try:
                mode = Path(path).stat().st_mode
            except OSError:  # one without a file
                continue
            if mode & stat.S_IWOTH:
                yield path


def _is_loopback(network: Network) -> bool:
    if isinstance(network, IPv4Network | IPv6Network):
        # Networks of two versions of IP do not overlap, but may not be compared either.
        return any(network.version == own.version and network.overlaps(own) for own in LOOPBACK)
    return False


def _accepts_loopback(address: IAddress) -> bool:
    """Whether it is, or includes, an address that only this machine can use."""
    host = getattr(address, "host", None)
    if host is None:
        return False
    found = ip_address(host)
    return found.is_loopback or found.is_unspecified


def _is_exposed(address: IAddress) -> bool:
    """A file of a Unix socket is reached from this machine only."""
    host = getattr(address, "host", None)
    return host is not None and not ip_address(host).is_loopback


def _shown(listening: Iterable[tuple[str, IAddress]]) -> str:
    return ", ".join(
        f"{getattr(address, 'host', '')} port {getattr(address, 'port', '')}"
        for _, address in listening
    )
