"""What a site should know about the addresses on which it listens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import ip_address

from twisted.internet.interfaces import IAddress

ENCRYPTED = ("ssl:", "tls:")


def warnings(
    listening: Iterable[tuple[str, IAddress]], *, guarded: bool, tokens: bool
) -> Iterator[str]:
    """One line for each danger.  ``listening``: endpoints, and the addresses that they bound."""
    exposed = [(endpoint, address) for endpoint, address in listening if _is_exposed(address)]
    if exposed and not guarded:
        yield (
            f"Whoever reaches {_spelt(exposed)} may post, download and delete every cart:"
            " [auth] in the configuration is off (docs/authentication.md); who asks by a name that"
            " is not in [server] hosts is answered with 421"
        )
    plain = [
        (endpoint, address)
        for endpoint, address in exposed
        if not endpoint.removeprefix("haproxy:").startswith(ENCRYPTED)
    ]
    if plain and tokens:
        yield (
            f"Tokens that are sent to {_spelt(plain)} can be read on their way: listen there"
            " with TLS (an ssl: endpoint), or on a loopback address behind a gateway with TLS"
        )


def _is_exposed(address: IAddress) -> bool:
    """A file of a Unix socket is reached from this machine only."""
    host = getattr(address, "host", None)
    return host is not None and not ip_address(host).is_loopback


def _spelt(listening: Iterable[tuple[str, IAddress]]) -> str:
    return ", ".join(
        f"{getattr(address, 'host', '')} port {getattr(address, 'port', '')}"
        for _, address in listening
    )
