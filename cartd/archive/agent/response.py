"""An answer as treq takes it, and its body on its way to whoever asks for that.

Strategy: a body is handed on in the pieces in which it was read, never faster than its protocol
takes it: what was read before the protocol is there, or while it pauses, is held, and the
connection reads no more meanwhile.  So at most one read is held, and after ``pauseProducing`` not a
byte is delivered.  Nor is one before whoever was given the answer has returned: by then a coroutine
awaits the body's end and can be cancelled.  A whole body ends when all of it is delivered, one that
was cut short at once.
"""

from __future__ import annotations

from typing import Final, Protocol, cast

from twisted.internet.interfaces import IProtocol, IPushProducer, ITransport
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone, ResponseFailed
from twisted.web.iweb import UNKNOWN_LENGTH, IResponse
from zope.interface import implementer

from cartd.archive.agent.head import Head
from cartd.archive.agent.request import Request

DONE: Final = Failure(ResponseDone("the whole body has come"))


class Source(Protocol):
    """The connection that a body comes from."""

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def abort(self) -> None: ...

    def body_ended(self) -> None:
        """Nobody needs the connection for this body any more."""


@implementer(IPushProducer)
class Body:
    """The way of one body from its connection to a protocol, whose transport it is."""

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
        """Whether the protocol knows."""

    @property
    def wanted(self) -> bool:
        """Whether somebody has asked for the body."""
        return self._protocol is not None

    def deliver_to(self, protocol: IProtocol) -> None:
        if self._protocol is not None:
            raise RuntimeError("the body of this answer has been delivered")
        self._protocol = protocol
        try:
            protocol.makeConnection(cast(ITransport, self))
        except Exception:
            self.abortConnection()
            raise
        self._deliver()

    def open(self) -> None:
        """Let what has come be delivered: the answer has been given."""
        self._delivering = False
        self._deliver()

    def receive(self, pieces: list[bytes]) -> None:
        self._held += pieces
        self._deliver()

    def finish(self, reason: Failure) -> None:
        """Nothing more will come, and the body is as whole as its framing can tell."""
        self._end = reason
        self._deliver()

    def fail(self, reason: Failure) -> None:
        """The body was cut short: what of it is held will not be delivered."""
        if self._end is None:
            self._end = reason
            self._held.clear()
            self._notify()

    def release_connection(self) -> None:
        """Give the connection back: what has come of the body is held here."""
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
        """Drop the connection and what is held at once, unless the connection was given back."""
        if self._source is not None:
            self._held.clear()
            self._end = None
            self._source.abort()

    stopProducing = loseConnection = abortConnection

    def _deliver(self) -> None:
        """Hand on what is held; within each piece a protocol may pause, resume or abort."""
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
    """An answer whose head has come.

    Its connection is free when the body has been delivered.  One that is not whole by now waits,
    paused, until somebody asks for its body.
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
        """The protocol's transport pauses, resumes and drops the connection, until the body ends.

        Its ``connectionLost`` is given :class:`~twisted.web.client.ResponseDone`;
        :class:`~twisted.web.http.PotentialDataLoss` where only the end of the connection said that
        the body is whole; or :class:`~twisted.web.client.ResponseFailed`.
        """
        self._body.deliver_to(protocol)

    def setPreviousResponse(self, response: IResponse) -> None:
        self.previousResponse = response
