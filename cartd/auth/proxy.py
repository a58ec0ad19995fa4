"""The proxies whose word is taken for who asks."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv6Address, ip_address
from typing import Any

from twisted.internet.interfaces import IAddress

from cartd.config import UNIX, Config, Network
from cartd.errors import ConfigError

UNIX_PEER = "unix"
"""In place of an address: who is on this machine, and may open the socket's file."""


class TrustedProxies:
    """Reads one header, of requests from some networks only."""

    @classmethod
    def from_config(cls, config: Config) -> TrustedProxies | None:
        """Those of the configuration, if it has any.

        :raises ConfigError: the header would be believed from nobody, or from anybody.
        """
        if config.auth_proxy_header is None:
            if config.auth_trusted_proxies:
                raise ConfigError("[auth] trusted_proxies: there is no proxy_header to believe")
            return None
        if not config.auth_trusted_proxies:
            raise ConfigError(
                "[auth] proxy_header: trusted_proxies must say from whom it is believed"
            )
        if any(endpoint.startswith("haproxy:") for endpoint in config.endpoints):
            raise ConfigError(
                "[auth] proxy_header: on a haproxy: endpoint a client may name its own address,"
                " so the header cannot be believed; listen on another kind"
            )
        return cls(config.auth_proxy_header, config.auth_trusted_proxies)

    def __init__(self, header: str, networks: Sequence[Network]) -> None:
        self._header = header.encode("ascii")
        self._networks = [network for network in networks if network != UNIX]
        self._unix = UNIX in networks

    def user_name(self, request: Any) -> bytes | None:
        """Whom a trusted proxy names; of several names, all, which then is nobody's."""
        values = request.requestHeaders.getRawHeaders(self._header)
        if not values or not self._trusts(peer_of(request)):
            return None
        return b", ".join(values)

    def _trusts(self, peer: str) -> bool:
        if peer == UNIX_PEER:
            return self._unix
        address = ip_address(peer)
        if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped  # an IPv4 client of a socket for both
        return any(address in network for network in self._networks)


def peer_of(request: Any) -> str:
    """The address of whoever is at the other end of the request's connection."""
    address: IAddress = request.channel.getPeer()
    return str(getattr(address, "host", UNIX_PEER))
