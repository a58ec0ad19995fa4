"""The HTTP server around the routes: limits that must hold before a route is reached."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from typing import Any
from weakref import WeakSet

from twisted.internet.interfaces import IAddress, IDelayedCall
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from twisted.web.http import RESPONSES, HTTPChannel, combinedLogFormatter, datetimeToLogString
from twisted.web.iweb import IRequest
from twisted.web.resource import IResource
from twisted.web.server import Request, Site

from cartd import refusals
from cartd.access_log import AccessLog
from cartd.errors import error_body
from cartd.model import User
from cartd.text_paths import TextPaths

IDLE_TIMEOUT = 60.0
"""Seconds that a connection may stand still between and within requests."""
STALL_TIMEOUT = 600.0
"""Seconds in which a client must take what is waiting for it; until then its cart is pinned."""
LINGER = 2.0
"""Seconds for which a refused body is read past, so that the client sees the answer."""
LONGEST_LINE = 8000
"""Characters of a line of the log.  The journal breaks one of 48 KiB in two, and the second would
begin with whatever a client had chosen."""


class LimitedRequest(Request):
    """A request whose body is refused as soon as it is known that it cannot be taken."""

    channel: Any
    content: Any
    max_body = 0
    who: User | None = None
    """Who asks; none where nobody is asked who they are."""
    _received = 0
    _refused = False
    _linger: IDelayedCall | None = None

    def gotLength(self, length: int | None) -> None:
        if length is not None and length > self.max_body:
            self._refuse_as_too_long()
        with self._disk():
            super().gotLength(0 if self._refused else length)

    def handleContentChunk(self, data: bytes) -> None:
        self._received += len(data)
        if self._received > self.max_body and not self._refused:
            self._refuse_as_too_long()
        if not self._refused:
            with self._disk():
                super().handleContentChunk(data)
                self.content.flush()

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        if self._refused:
            self.channel.loseConnection()
        else:
            super().requestReceived(command, path, version)

    def connectionLost(self, reason: Failure) -> None:
        if self._linger is not None and self._linger.active():
            self._linger.cancel()
        super().connectionLost(reason)

    def waits_for_client(self, waits: bool) -> None:
        if self.channel is not None:
            self.channel.wait_for_client(waits)

    @contextmanager
    def _disk(self) -> Iterator[None]:
        """Around what may meet the disk: a long body is kept in the system's temporary files."""
        try:
            yield
        except OSError as error:
            if self.content is not None:
                with suppress(OSError):
                    self.content.close()
            self.content = BytesIO()
            self._refuse(507, f"The body cannot be kept: {error.strerror}")

    def _refuse_as_too_long(self) -> None:
        limit = "server.max_manifest"
        self._refuse(413, f"The body is over {self.max_body} bytes ({limit})", limit)

    def _refuse(self, code: int, message: str, limit: str | None = None) -> None:
        """Answer now (for 413, RFC 9110, section 15.5.14), and close when the client has read."""
        self._refused = True
        # No "100 Continue" to a client that asks first.
        self.requestHeaders.removeHeader(b"expect")
        self.channel.answer_at_once(code, message, limit)
        self._linger = self.channel.callLater(LINGER, self.channel.transport.abortConnection)


class LimitedChannel(HTTPChannel):
    """A connection that answers in JSON whatever it cannot read, and gives up stuck clients."""

    transport: Any
    _sending = False
    _lost = False

    def headerReceived(self, line: bytes) -> bool:
        try:
            return bool(super().headerReceived(line))
        except ValueError:
            # Python refuses to read a Content-Length of thousands of digits.
            self._respondToBadRequestAndDisconnect()
            return False

    def lineLengthExceeded(self, line: bytes) -> None:
        self._respondToBadRequestAndDisconnect()

    def answer_at_once(self, code: int, message: str, limit: str | None = None) -> None:
        """Answer a request whose rest is not waited for; the connection is of no use any more."""
        refusals.note(
            code,
            message,
            limit,
            peer=self.getPeer(),
            # Twisted keeps them from a request's first line to its end.
            method=getattr(self, "_command", b""),
            target=getattr(self, "_path", b""),
        )
        body = error_body(code, message, limit)
        self.transport.write(
            b"HTTP/1.1 %d %s\r\nConnection: close\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
            % (code, RESPONSES[code], len(body), body)
        )

    def _respondToBadRequestAndDisconnect(self) -> None:
        # Twisted's own answer has neither a length nor a body.
        self.answer_at_once(400, "This is not HTTP, or its head is over a limit")
        self.loseConnection()

    def end(self) -> None:
        """Close the connection, after what was answered; break it in the middle of a cart.

        To break it throws away what the client has not taken yet, of a finished download too.
        """
        if self._lost or self.transport is None:
            return
        if self._sending:
            self.transport.abortConnection()
        else:
            self.loseConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._lost = True
        super().connectionLost(reason)

    # Who does not read holds a cart in its place, so not for ever.

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        self._sending = True
        super().registerProducer(producer, streaming)

    def unregisterProducer(self) -> None:
        super().unregisterProducer()
        self.wait_for_client(False)
        self._sending = False

    def pauseProducing(self) -> None:
        self.wait_for_client(True)
        super().pauseProducing()

    def resumeProducing(self) -> None:
        self.wait_for_client(False)
        super().resumeProducing()

    def wait_for_client(self, waits: bool) -> None:
        """While a cart is sent: the client has yet to take some of it, or has done so."""
        if self._sending:
            self.setTimeout(STALL_TIMEOUT if waits else None)


class LimitedSite(Site):
    """The factory of the server's connections, which it can break."""

    protocol: Any = LimitedChannel

    def __init__(self, routes: IResource, reactor: Any, *, max_body: int) -> None:
        limited = type("Request", (LimitedRequest,), {"max_body": max_body})
        super().__init__(
            TextPaths(routes),
            requestFactory=limited,
            parsePOSTFormSubmission=False,  # any content type is a manifest
            timeout=IDLE_TIMEOUT,
            logFormatter=_dated,
            reactor=reactor,
        )
        self._connections: WeakSet[LimitedChannel] = WeakSet()

    def startFactory(self) -> None:
        super().startFactory()
        self.logFile = AccessLog(self.reactor)

    def acceptableProtocols(self) -> list[bytes]:
        """What TLS may agree on: not HTTP/2, in which neither limits nor aborts would hold."""
        return [b"http/1.1"]

    def buildProtocol(self, addr: IAddress | None) -> Any:
        connection = super().buildProtocol(addr)
        self._connections.add(connection)
        return connection

    def close_connections(self) -> None:
        """End all connections: those break on which a cart is being sent."""
        for connection in list(self._connections):
            connection.end()


def _dated(_reactor_time: str, request: IRequest) -> str:
    """A line of the access log: its date is the machine's, which the reactor's time is not."""
    line = str(combinedLogFormatter(datetimeToLogString(), request))
    return line if len(line) <= LONGEST_LINE else f"{line[:LONGEST_LINE]}..."
