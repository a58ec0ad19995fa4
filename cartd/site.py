"""The HTTP server around the routes: limits that must hold before a route is reached."""

from __future__ import annotations

from typing import Any
from weakref import WeakSet

from twisted.internet.interfaces import IAddress, IDelayedCall
from twisted.python.failure import Failure
from twisted.web.resource import IResource
from twisted.web.server import Request, Site

from cartd.errors import error_body
from cartd.text_paths import TextPaths

IDLE_TIMEOUT = 60.0
"""Seconds that a connection may stand still between and within requests."""
LINGER = 2.0
"""Seconds for which a refused body is read past, so that the client sees the answer."""


class LimitedRequest(Request):
    """A request whose body is refused as soon as it is known to be over a limit."""

    channel: Any
    max_body = 0
    _received = 0
    _refused = False
    _linger: IDelayedCall | None = None

    def gotLength(self, length: int | None) -> None:
        if length is not None and length > self.max_body:
            self._refuse()
        super().gotLength(0 if self._refused else length)

    def handleContentChunk(self, data: bytes) -> None:
        self._received += len(data)
        if self._received > self.max_body and not self._refused:
            self._refuse()
        if not self._refused:
            super().handleContentChunk(data)

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        if self._refused:
            self.channel.loseConnection()
        else:
            super().requestReceived(command, path, version)

    def connectionLost(self, reason: Failure) -> None:
        if self._linger is not None and self._linger.active():
            self._linger.cancel()
        super().connectionLost(reason)

    def _refuse(self) -> None:
        """Answer 413 now (RFC 9110, section 15.5.14) and close when the client has read it."""
        self._refused = True
        # No "100 Continue" to a client that asks first.
        self.requestHeaders.removeHeader(b"expect")
        body = error_body(413, f"The body is over {self.max_body} bytes (server.max_manifest)")
        self.channel.transport.write(
            b"HTTP/1.1 413 Content Too Large\r\nConnection: close\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        self._linger = self.channel.callLater(LINGER, self.channel.forceAbortClient)


class LimitedSite(Site):
    """The factory of the server's connections, which it can break."""

    def __init__(self, routes: IResource, reactor: Any, *, max_body: int) -> None:
        limited = type("Request", (LimitedRequest,), {"max_body": max_body})
        super().__init__(
            TextPaths(routes), requestFactory=limited, timeout=IDLE_TIMEOUT, reactor=reactor
        )
        self._connections: WeakSet[Any] = WeakSet()

    def buildProtocol(self, addr: IAddress | None) -> Any:
        connection = super().buildProtocol(addr)
        self._connections.add(connection)
        return connection

    def abort_connections(self) -> None:
        """Break all connections, whatever is being sent on them."""
        for connection in list(self._connections):
            if connection.transport is not None:
                connection.transport.abortConnection()
