"""Authentication of requests, by the token in the Authorization header or by a trusted proxy.

Each request is authenticated anew: it takes microseconds, and nothing is cached.
:func:`startup_warnings` reports addresses on which authentication does not protect the carts.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Any

from twisted.cred.error import LoginFailed
from twisted.internet.address import UNIXAddress
from twisted.internet.interfaces import IAddress
from twisted.logger import Logger
from twisted.web.guard import BasicCredentialFactory

from cartd.auth.token_file import TokenRegistry
from cartd.auth.tokens import DUMMY_HASH, NAME, redact_secret, token_name
from cartd.config import UNIX, Config, Network
from cartd.errors import INTERNAL_ERROR, CartdError, ConfigError, NoCredentials, Unauthenticated
from cartd.model import User

log = Logger()

REALM = b"cartd"
MAX_NAME_SHOWN = 64
"""Characters of a name that are shown in the message, and so in the rejection log."""

CREDENTIALS_REQUIRED = (
    "Authentication required: send your token as a bearer token or as the HTTP Basic password"
)
BAD_AUTHORIZATION = "The Authorization header is neither a bearer token nor HTTP Basic"
WRONG_CREDENTIALS = "The name or the token is wrong"
PROXY_REQUIRED = "Authentication required: the proxy in front must send the user's name"
BAD_PROXY_NAME = "The proxy sent no valid user name"


@dataclass(frozen=True, slots=True)
class Credentials:
    """A token and the user name sent with it, neither of them verified."""

    name: str
    secret: bytes = field(repr=False)


class BearerScheme:
    """Tokens in an Authorization header (RFC 6750, section 2.1)."""

    scheme = b"bearer"
    challenge = b'Bearer realm="%s"' % REALM

    def parse(self, value: bytes) -> Credentials:
        """Raise LoginFailed if ``value`` contains no name."""
        name = token_name(value)
        if name is None:
            raise LoginFailed
        return Credentials(_text(name), value)


class BasicScheme:
    """Tokens as passwords (RFC 7617)."""

    scheme = b"basic"
    challenge = b'Basic realm="%s", charset="UTF-8"' % REALM
    _factory = BasicCredentialFactory(REALM)

    def parse(self, value: bytes) -> Credentials:
        """Raise LoginFailed if ``value`` is malformed."""
        given: Any = self._factory.decode(value, None)
        return Credentials(_text(given.username), given.password)


SCHEMES = (BearerScheme(), BasicScheme())


def parse_authorization(value: bytes) -> Credentials:
    """Parse the value of ``Authorization``.  Raises LoginFailed for any other scheme."""
    scheme, _, rest = value.strip().partition(b" ")
    for known in SCHEMES:
        if scheme.lower() == known.scheme:
            return known.parse(rest.strip())
    raise LoginFailed


def _text(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")


class Authenticator:
    """Checks a request's token against the token file, or accepts a trusted proxy's user name."""

    def __init__(
        self, registry: TokenRegistry, proxies: TrustedProxies | None, *, tokens: bool
    ) -> None:
        """``tokens``: whether tokens are accepted; otherwise only the proxy names users."""
        self.tokens = tokens
        self._registry = registry
        self._proxies = proxies

    async def poll(self) -> None:
        """Reload the token file if it has changed."""
        await self._registry.poll()

    def try_authenticate(self, request: Any) -> User | CartdError:
        """Return the user, or the error to reject the request with."""
        try:
            return self.authenticate(request)
        except CartdError as error:
            return error
        except Exception:
            log.failure("Internal error while a request was authenticated")
            return CartdError(INTERNAL_ERROR)

    def authenticate(self, request: Any) -> User:
        """Return the user of the request, from its head.

        :raises Unauthenticated: no credentials (:class:`NoCredentials`), or wrong ones.
        :raises Unavailable: the token file cannot be read.
        """
        named = None if self._proxies is None else self._proxies.user_name(request)
        if named is not None:
            return self._user_from_proxy(named.decode("utf-8", "backslashreplace"))
        values = request.requestHeaders.getRawHeaders(b"authorization", []) if self.tokens else []
        if not values:
            raise NoCredentials(CREDENTIALS_REQUIRED if self.tokens else PROXY_REQUIRED)
        return self._user_with_token(_credentials_in(values))

    def headers(self, error: CartdError) -> list[tuple[bytes, bytes]]:
        """Return the headers of the response to that error."""
        if not isinstance(error, Unauthenticated):
            return []
        # At least one challenge (RFC 9110, section 15.5.2).  Browsers react to Basic with a dialog,
        # which is useless where only the proxy can set the name.
        schemes = SCHEMES if self.tokens else SCHEMES[:1]
        return [(b"WWW-Authenticate", scheme.challenge) for scheme in schemes]

    def _user_with_token(self, token: Credentials) -> User:
        entry = self._registry.entry(token.name)
        # Always exactly one comparison, so that timing does not reveal which names exist.
        if not (DUMMY_HASH if entry is None else entry.hash).matches(token.secret) or entry is None:
            raise Unauthenticated(_with_name(WRONG_CREDENTIALS, token.name))
        return entry.user

    def _user_from_proxy(self, name: str) -> User:
        if not NAME.fullmatch(name):
            raise Unauthenticated(_with_name(BAD_PROXY_NAME, name))
        return self._registry.user(name)


def _credentials_in(values: Sequence[bytes]) -> Credentials:
    try:
        return parse_authorization(b", ".join(values))
    except LoginFailed:
        raise Unauthenticated(BAD_AUTHORIZATION) from None


def _with_name(message: str, name: str) -> str:
    """Append the name sent by the client: it shows whose token failed."""
    return f"{message}: {redact_secret(name)[:MAX_NAME_SHOWN]!a}"


UNIX_PEER = "unix"
"""In place of an address: a local process that may open the socket's file."""


class TrustedPeers:
    """Tells whether a peer is in one of the configured networks."""

    def __init__(self, networks: Sequence[Network]) -> None:
        self._networks = [network for network in networks if network != UNIX]
        self._unix = UNIX in networks

    def __contains__(self, peer: str) -> bool:
        """Whether the address, or :data:`UNIX_PEER`, is trusted."""
        if peer == UNIX_PEER:
            return self._unix
        address = ip_address(peer)
        if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped  # an IPv4 client of a dual-stack socket
        return any(address in network for network in self._networks)


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
        self._peers = TrustedPeers(networks)

    def user_name(self, request: Any) -> bytes | None:
        """Return the name in the header if the peer is trusted, else None.

        Several headers are joined with a comma, which no valid name contains.
        """
        values = request.requestHeaders.getRawHeaders(self._header)
        if not values or peer_of(request) not in self._peers:
            return None
        return b", ".join(values)


def peer_of(request: Any) -> str:
    """Return the peer's address, or :data:`UNIX_PEER`."""
    address: IAddress = request.channel.getPeer()
    return str(getattr(address, "host", UNIX_PEER))


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
