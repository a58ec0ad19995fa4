"""The HTTP server around the routes: accepts connections, enforces limits, logs requests."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import Any
from weakref import WeakSet

from twisted.internet.interfaces import IAddress
from twisted.web.http import NO_BODY_CODES
from twisted.web.http_headers import Headers
from twisted.web.resource import IResource
from twisted.web.server import Site

from cartd.auth import Authenticator
from cartd.deferreds.threads import ThreadRunner
from cartd.http import route_table
from cartd.http.access_log import CLIENT_CLOSED_REQUEST, AccessLog
from cartd.http.auth_resource import AuthResource
from cartd.http.connection import LimitedChannel
from cartd.http.connection_limits import ConnectionLimits
from cartd.http.error_responses import serialize_error
from cartd.http.host_header import ANY_HOST
from cartd.http.limits import Limits, setting_name
from cartd.http.overflow import OverflowFactory, OverflowProtocol
from cartd.http.request import LimitedRequest
from cartd.http.request_body import TempFileLimit
from cartd.http.request_head import RequestRules
from cartd.http.request_normalizer import RequestNormalizer

NO_HEADERS = Headers()


class LimitedSite(Site):
    """The factory of the server's connections, which it can also close."""

    protocol: Any = LimitedChannel

    def __init__(
        self,
        routes: IResource,
        reactor: Any,
        limits: Limits,
        authenticator: Authenticator | None = None,
        *,
        allowed_hosts: Collection[str] = (),
        allowed_origins: Collection[str] = (),
        threads: ThreadRunner,
    ) -> None:
        """``allowed_hosts``: the allowed values of Host; with an ``authenticator`` any is allowed.
        Pages of ``allowed_origins`` may send cross-origin requests.  ``threads`` write long bodies.
        """
        rules = RequestRules(
            route_table.allowed_methods,
            route_table.CART_METHODS,
            max_body=limits.max_manifest_size,
            check_post=route_table.check_post,
            allowed_hosts=frozenset(allowed_hosts)
            if authenticator is None
            else frozenset({ANY_HOST}),
            hosts_setting="[server] allowed_hosts",
            allowed_origins=frozenset(allowed_origins),
            origins_setting="[server] allowed_origins",
        )
        super().__init__(
            RequestNormalizer(
                routes if authenticator is None else AuthResource(routes, authenticator), rules
            ),
            requestFactory=LimitedRequest,
            parsePOSTFormSubmission=False,  # any content type is a manifest
            reactor=reactor,
        )
        self.timeOut = None  # the channels have their own timeouts
        self._access_log = AccessLog(reactor)
        self._limits = limits
        self._rules = rules
        self._authenticator = authenticator
        self._temp_file_limit = TempFileLimit(limits.temp_file_limit, threads)
        self._connection_limits = ConnectionLimits(
            limits.max_connections, limits.max_connections_per_address
        )
        self._overflow = OverflowFactory(reactor)
        self._connections: WeakSet[LimitedChannel | OverflowProtocol] = WeakSet()

    def startFactory(self) -> None:
        """Do nothing: Twisted would open its own access log and start a timer for its dates."""

    def log(self, request: Any) -> None:
        """Log a request whose response has ended or was aborted."""
        request.logged = True
        self._access_log.log_request(
            request.getClientAddress(),
            "-" if request.authenticated_user is None else request.authenticated_user.name,
            b"%s %s %s" % (request.method, request.uri, request.clientproto),
            request.code if request.startedWriting else CLIENT_CLOSED_REQUEST,
            sent=request.bytes_sent,
            length=_length(request),
            headers=request.requestHeaders,
            seconds=request.seconds,
        )

    def log_rejection(self, channel: LimitedChannel, code: int, sent: int) -> None:
        """Log input rejected before it was a complete request, with ``sent`` bytes of body."""
        request = channel.requests[-1] if channel.requests else None
        if request is not None:
            request.logged = True
        self._access_log.log_request(
            channel.getPeer(),
            "-",
            channel.request_line(),
            code,
            sent=sent,
            length=b"%d" % sent,
            headers=NO_HEADERS if request is None else request.requestHeaders,
            seconds=0.0 if request is None else request.seconds,
        )

    def acceptableProtocols(self) -> list[bytes]:
        """Return the protocols for ALPN: not HTTP/2, where limits and aborts would not work."""
        return [b"http/1.1"]

    def buildProtocol(self, addr: IAddress | None) -> Any:
        limit = self._connection_limits.acquire(addr)
        connection = self._accept(addr) if limit is None else self._reject_connection(addr, limit)
        self._connections.add(connection)
        return connection

    def close_connections(self) -> None:
        """Close all connections; abort those on which a cart is being sent."""
        for connection in list(self._connections):
            connection.disconnect()

    def close_log(self) -> None:
        """Write the rest of the access log, after the last request."""
        self._access_log.close()

    def _accept(self, addr: IAddress | None) -> LimitedChannel:
        channel: Any = super().buildProtocol(addr)
        channel.limits = self._limits
        channel.rules = self._rules
        channel.authenticator = self._authenticator
        channel.temp_file_limit = self._temp_file_limit
        channel.on_disconnect = partial(self._connection_limits.release, addr)
        admitted: LimitedChannel = channel
        return admitted

    def _reject_connection(self, addr: IAddress | None, limit: str) -> OverflowProtocol:
        code, whose = (503, "") if limit == "max_connections" else (429, " from your address")
        most = getattr(self._limits, limit)
        message = (
            f"The limit of {most} connections{whose} is reached ({setting_name(limit)});"
            " retry later"
        )
        return self._overflow.build_protocol(
            serialize_error(addr, code, message, setting_name(limit))
        )


def _length(request: Any) -> bytes:
    """Return the declared length of the response body, ``-`` if unknown."""
    if request.method == b"HEAD" or request.code in NO_BODY_CODES:
        return b"-"
    # A chunked tar has its length only in the second.
    for name in (b"content-length", b"x-pacifica-tar-length"):
        if values := request.responseHeaders.getRawHeaders(name):
            length: bytes = values[0]
            return length
    return b"-"
