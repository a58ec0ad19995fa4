"""The archive client's connection to a peer whose bytes the test supplies."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from twisted.internet.defer import Deferred, fail
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IBodyProducer, IResponse
from zope.interface import implementer

from cartd.archive.http_agent import Connection, Pool
from cartd.archive.http_messages import Request


class Transport(StringTransport):
    """Records whether the connection still accepts bytes."""

    @property
    def is_open(self) -> bool:
        return not (self.disconnecting or self.disconnected)


class Exchange:
    """One request on a connection of its own, and its outcome."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.clock = Clock()
        self.pool = Pool(self.clock, max_idle=1, idle_seconds=30.0)
        self.connection = Connection(request.origin, self.pool)
        self.transport = Transport()
        self.connection.makeConnection(self.transport)
        self.answered = self.connection.send(request)

    def receive(self, pieces: Iterable[bytes]) -> None:
        """Receive these pieces, for as long as the connection is open."""
        for piece in pieces:
            if piece and self.transport.is_open:
                self.connection.dataReceived(piece)

    def is_kept(self) -> bool:
        """Whether the connection is reused for another request; may be called once."""
        return self.pool.take(self.request.origin) is not None

    def end(self) -> None:
        """Close the connection cleanly, unless it is closed."""
        self.connection.connectionLost(Failure(ConnectionDone()))
        self.pool.closeCachedConnections()
        assert self.clock.getDelayedCalls() == []


class Collected(Protocol):
    """Collects a body, and how it ended."""

    transport: Any

    def __init__(self) -> None:
        self.data = bytearray()
        self.end: type[BaseException] | None = None

    def dataReceived(self, data: bytes) -> None:
        assert self.end is None, "bytes came after the end"
        self.data += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        assert self.end is None, "it ended twice"
        assert reason.value is not None
        self.end = type(reason.value)


@implementer(IAgent)
class FixedResponse:
    """An agent that receives the same bytes for every request, and then the end of the stream."""

    def __init__(self, wire: bytes) -> None:
        self._wire = wire
        self.asked: list[Request] = []

    def request(
        self,
        method: bytes,
        uri: bytes,
        headers: Headers | None = None,
        bodyProducer: IBodyProducer | None = None,
    ) -> Deferred[IResponse]:
        try:
            request = Request(method, uri, headers or Headers())
        except ValueError:
            return fail(Failure())
        self.asked.append(request)
        exchange = Exchange(request)
        exchange.receive([self._wire])
        exchange.end()
        return exchange.answered
