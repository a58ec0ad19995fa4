"""Listening on the configured endpoints: TCP, TLS, Unix sockets and the PROXY protocol."""

from __future__ import annotations

from typing import Any

from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import IListeningPort, IProtocolFactory, IStreamServerEndpoint
from twisted.protocols.haproxy import proxyEndpoint
from twisted.python.failure import Failure

from cartd.config import is_unix, parse_tls_endpoint, parse_unix_endpoint
from cartd.errors import ConfigError
from cartd.http.tls import ServerTls
from cartd.http.unix_socket import UnixSocketEndpoint


def listen(
    reactor: Any, description: str, site: IProtocolFactory, *, umask: int
) -> tuple[IListeningPort, ServerTls | None]:
    """Bind one endpoint; return the port and, for TLS, the certificate for the caller to poll.

    Twisted's endpoints bind at once, so that a failure can stop the start.  ``umask`` restricts the
    mode of a Unix socket if the endpoint specifies none.

    :raises ConfigError: the endpoint is invalid, its certificate is unusable, or binding fails.
    """
    endpoint, tls = _endpoint(reactor, description, umask)
    outcome: list[IListeningPort | Failure] = []
    endpoint.listen(site).addBoth(outcome.append)
    [port] = outcome
    if isinstance(port, Failure):
        raise ConfigError(f"cannot listen on {description}: {_reason(port)}")
    return port, tls


def _reason(failure: Failure) -> str:
    error = getattr(failure.value, "socketError", failure.value)
    return (isinstance(error, OSError) and error.strerror) or failure.getErrorMessage()


def _endpoint(
    reactor: Any, description: str, umask: int
) -> tuple[IStreamServerEndpoint, ServerTls | None]:
    try:
        if is_unix(description):
            unix = parse_unix_endpoint(description.removeprefix("haproxy:"))
            endpoint = UnixSocketEndpoint(reactor, unix, umask)
            return (proxyEndpoint(endpoint) if description[0] == "h" else endpoint), None
        if not description.startswith("ssl:"):
            return serverFromString(reactor, description), None
        tls = ServerTls(parse_tls_endpoint(description))
    except ConfigError as error:
        raise ConfigError(f"cannot listen on {description}: {error}") from None
    except Exception as error:
        raise ConfigError(f"{description} is not an endpoint: {error}") from error
    return tls.endpoint(reactor), tls
