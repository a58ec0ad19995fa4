"""Where the service listens: a Twisted endpoint, and a certificate if it is one of TLS."""

from __future__ import annotations

from typing import Any

from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import IListeningPort, IProtocolFactory, IStreamServerEndpoint
from twisted.protocols.haproxy import proxyEndpoint
from twisted.python.failure import Failure

from cartd.config import is_unix, parse_tls_endpoint, parse_unix_endpoint
from cartd.errors import ConfigError
from cartd.server.unix_socket import UnixSocketEndpoint
from cartd.tls import ServerTls


def listen(
    reactor: Any, description: str, site: IProtocolFactory, *, umask: int
) -> tuple[IListeningPort, ServerTls | None]:
    """Bind one endpoint.  Its certificate, if it has one, is to be looked after.

    Twisted's endpoints bind at once, so that a failure can stop the start.  ``umask`` takes rights
    from a Unix socket for which the endpoint names no mode.

    :raises ConfigError: it is no endpoint, its certificate cannot be used, or it cannot be bound.
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
