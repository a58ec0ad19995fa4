"""Trusted proxies, which send the user's name in a header."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv6Address, ip_address
from typing import Any

from twisted.internet.interfaces import IAddress

from cartd.config import UNIX, Config, Network
from cartd.errors import ConfigError

UNIX_PEER = "unix"
"""In place of an address: a local process that may open the socket's file."""


class TrustedProxies:
    """Reads the user's name from one header, only in requests from trusted networks."""

    @classmethod
    def from_config(cls, config: Config) -> TrustedProxies | None:
        """Return the configured proxies, or None.

        :raises ConfigError: the header could be accepted from no peer, or from any client.
        """
        if config.auth_proxy_header is None:
            if config.auth_trusted_proxies:
                raise ConfigError("[auth] trusted_proxies has no effect without proxy_header")
            return None
        if not config.auth_trusted_proxies:
            raise ConfigError(
                "[auth] proxy_header: needs trusted_proxies, the peers from which it is accepted"
            )
        if any(endpoint.startswith("haproxy:") for endpoint in config.endpoints):
            raise ConfigError(
                "[auth] proxy_header: on a haproxy: endpoint clients can forge their address,"
                " so the header cannot be trusted; use another kind of endpoint"
            )
        return cls(config.auth_proxy_header, config.auth_trusted_proxies)

    def __init__(self, header: str, networks: Sequence[Network]) -> None:
        self._header = header.encode("ascii")
        self._networks = [network for network in networks if network != UNIX]
        self._unix = UNIX in networks

    def user_name(self, request: Any) -> bytes | None:
        """Return the name in the header if the peer is trusted, else None.

        Several headers are joined with a comma, which no valid name contains.
        """
        values = request.requestHeaders.getRawHeaders(self._header)
        if not values or not self._trusts(peer_of(request)):
            return None
        return b", ".join(values)

    def _trusts(self, peer: str) -> bool:
        if peer == UNIX_PEER:
            return self._unix
        address = ip_address(peer)
        if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped  # an IPv4 client of a dual-stack socket
        return any(address in network for network in self._networks)


def peer_of(request: Any) -> str:
    """Return the peer's address, or :data:`UNIX_PEER`."""
    address: IAddress = request.channel.getPeer()
    return str(getattr(address, "host", UNIX_PEER))
