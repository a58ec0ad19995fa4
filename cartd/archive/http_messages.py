"""A response as treq needs it, and the delivery of its body to a protocol.

Strategy: a body is delivered in the pieces in which it was read, at the speed of its protocol.
Bytes that were read before there is a protocol, or while it pauses, are held, and the connection
pauses reading.  So at most one read is held, and no byte is delivered after ``pauseProducing``.
Nor is one before the callback of the response has returned: by then a coroutine awaits the end of
the body and can be cancelled.  A complete body ends when all of it is delivered, one that was cut
short ends at once.
"""

from __future__ import annotations

from typing import Final, Protocol, cast

from twisted.internet.interfaces import IProtocol, IPushProducer, ITransport
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone, ResponseFailed
from twisted.web.iweb import UNKNOWN_LENGTH, IResponse
from zope.interface import implementer

from cartd.archive.head import Head
from cartd.archive.request import Request

DONE: Final = Failure(ResponseDone("the body is complete"))


class Source(Protocol):
    """The connection that a body comes from."""

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def abort(self) -> None: ...

    def body_ended(self) -> None:
        """The body does not need the connection any more."""


@implementer(IPushProducer)
class Body:
    """Delivers one body from its connection to a protocol, as the transport of that."""

    __slots__ = ("_delivering", "_end", "_held", "_notified", "_paused", "_protocol", "_source")

    def __init__(self, source: Source) -> None:
        self._source: Source | None = source
        self._protocol: IProtocol | None = None
        self._held: list[bytes] = []
        self._paused = False
        self._delivering = True
        self._end: Failure | None = None
        """How the body ended, once it has."""
        self._notified = False
        """Whether the protocol was notified of the end."""

    @property
    def wanted(self) -> bool:
        """Whether the body has a protocol to be delivered to."""
        return self._protocol is not None

    def deliver_to(self, protocol: IProtocol) -> None:
        if self._protocol is not None:
            raise RuntimeError("the body of this response has been delivered")
        self._protocol = protocol
        try:
            protocol.makeConnection(cast(ITransport, self))
        except Exception:
            self.abortConnection()
            raise
        self._deliver()

    def open(self) -> None:
        """Start delivery, after the callback of the response has returned."""
        self._delivering = False
        self._deliver()

    def receive(self, pieces: list[bytes]) -> None:
        self._held += pieces
        self._deliver()

    def finish(self, reason: Failure) -> None:
        """The body has ended, and is complete as far as its framing can tell."""
        self._end = reason
        self._deliver()

    def fail(self, reason: Failure) -> None:
        """The body was cut short; held bytes are dropped."""
        if self._end is None:
            self._end = reason
            self._held.clear()
            self._notify()

    def release_connection(self) -> None:
        """Release the connection; the rest of the body is held here."""
        source, self._source = self._source, None
        if source is not None:
            source.body_ended()

    def pauseProducing(self) -> None:
        self._paused = True
        if self._source is not None:
            self._source.pause()

    def resumeProducing(self) -> None:
        self._paused = False
        self._deliver()

    def abortConnection(self) -> None:
        """Drop the connection and held bytes at once, unless the connection was released."""
        if self._source is not None:
            self._held.clear()
            self._end = None
            self._source.abort()

    stopProducing = loseConnection = abortConnection

    def _deliver(self) -> None:
        """Deliver held bytes; in each call the protocol may pause, resume or abort."""
        protocol = self._protocol
        if protocol is None or self._delivering:
            return
        self._delivering = True
        while self._held and not self._paused:
            try:
                protocol.dataReceived(self._held.pop(0))
            except Exception:
                self.abortConnection()
                self.fail(Failure(ResponseFailed([Failure()])))
        self._delivering = False
        if self._paused:
            return
        if self._end is not None:
            self._notify()
        elif self._source is not None:
            self._source.resume()

    def _notify(self) -> None:
        if self._notified or self._protocol is None or self._end is None:
            return
        self._notified = True
        self.release_connection()
        self._protocol.connectionLost(self._end)


@implementer(IResponse)
class Response:
    """A response whose head has come.

    Its connection is free when the body has been delivered.  If the body is not complete yet, the
    connection is paused until the body is requested.
    """

    __slots__ = ("_body", "code", "headers", "length", "phrase", "previousResponse", "request")

    version: Final = (b"HTTP", 1, 1)

    def __init__(self, head: Head, request: Request, body: Body) -> None:
        self.code = head.code
        self.phrase = head.phrase
        self.headers = head.headers
        self.length: int | str = UNKNOWN_LENGTH if head.length is None else head.length
        self.request = request
        self.previousResponse: IResponse | None = None
        self._body = body

    def deliverBody(self, protocol: IProtocol) -> None:
        """Deliver the body to a protocol, whose transport pauses, resumes and drops the connection.

        Its ``connectionLost`` gets :class:`~twisted.web.client.ResponseDone`;
        :class:`~twisted.web.http.PotentialDataLoss` where only the end of the connection
        ended the body; or :class:`~twisted.web.client.ResponseFailed`.
        """
        self._body.deliver_to(protocol)

    def setPreviousResponse(self, response: IResponse) -> None:
        self.previousResponse = response
