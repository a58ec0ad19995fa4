"""A server that receives request bodies over a real socket, and cartd's agent as its client."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from treq.client import HTTPClient
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IConsumer
from twisted.internet.protocol import Protocol, ServerFactory, connectionDone
from twisted.internet.task import Clock, deferLater
from twisted.python.failure import Failure
from twisted.web.iweb import IBodyProducer, IResponse
from zope.interface import implementer

from cartd.archive import TlsPolicy
from cartd.archive.http_agent import Agent, Pool
from tests.support.archive_client_fixture import TEST_TIMEOUT, no_logged_errors, reactor

CREATED = b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n"
_LENGTH = re.compile(rb"\r\nContent-Length: ([0-9]+)\r\n")


class Received(Protocol):
    """One connection.  ``bodies`` holds that of each request, complete or not."""

    transport: Any

    def __init__(self, server: UploadServer) -> None:
        self._server = server
        self._unread = b""
        self._left = 0
        self.heads: list[bytes] = []
        self.bodies: list[bytearray] = []
        self.is_open = True

    def connectionMade(self) -> None:
        self._server.connections.append(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.is_open = False

    def dataReceived(self, data: bytes) -> None:
        if not self._left:
            head, found, data = (self._unread + data).partition(b"\r\n\r\n")
            if not found:
                self._unread = head
                return
            self._unread = b""
            self.heads.append(head)
            self.bodies.append(bytearray())
            length = _LENGTH.search(head + b"\r\n")
            self._left = 0 if length is None else int(length[1])
            self._server.on_head(self)
        self.bodies[-1] += data
        self._left -= len(data)
        if not self._left and self._server.reply:
            self.transport.write(self._server.reply)


class UploadServer:
    """Answers each request with ``reply`` when its body is complete; ``on_head`` is called before.

    Also the client: ``put`` sends a request of the agent.
    """

    def __init__(self, tls: Any, ca_file: Path | None, reply: bytes) -> None:
        self.reply = reply
        self.on_head: Callable[[Received], object] = lambda _: None
        self.connections: list[Received] = []
        factory = ServerFactory.forProtocol(lambda: Received(self))
        where = {"interface": "127.0.0.1"}
        if tls is None:
            self.port = reactor.listenTCP(0, factory, **where)
        else:
            self.port = reactor.listenSSL(0, factory, tls, **where)
        scheme = "http" if tls is None else "https"
        self.url = f"{scheme}://127.0.0.1:{self.port.getHost().port}/7"
        self.clock = Clock()
        self.pool = Pool(self.clock, max_idle=2, idle_seconds=30.0)
        self.agent = Agent(reactor, self.pool, TlsPolicy(ca_file=ca_file), connect_timeout=10.0)
        self.treq = HTTPClient(self.agent)

    def put(self, body: Any, method: bytes = b"PUT") -> Deferred[IResponse]:
        asked = self.agent.request(method, self.url.encode(), None, body)
        return asked.addTimeout(TEST_TIMEOUT, reactor)

    async def until(self, condition: Callable[[], bool]) -> None:
        deadline = reactor.seconds() + TEST_TIMEOUT
        while not condition():
            assert reactor.seconds() < deadline
            await deferLater(reactor, 0.002)


@asynccontextmanager
async def upload_server(
    tls: Any = None, ca_file: Path | None = None, *, reply: bytes = CREATED
) -> AsyncIterator[UploadServer]:
    """Ends by closing the pool, and fails if a connection or a logged error is left."""
    with no_logged_errors():
        server = UploadServer(tls, ca_file, reply)
        try:
            yield server
            await server.pool.closeCachedConnections().addTimeout(TEST_TIMEOUT, reactor)
            await server.until(lambda: not any(one.is_open for one in server.connections))
            assert server.clock.getDelayedCalls() == []
        finally:
            await server.port.stopListening()


@implementer(IBodyProducer)
class Written:
    """A body that the test writes; it records how it is paused, resumed and stopped."""

    def __init__(self, length: Any) -> None:
        self.length = length
        self.calls: list[str] = []
        self.consumer: Any = None
        self.written: Deferred[None] = Deferred()

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        self.calls.append("start")
        self.consumer = consumer
        return self.written

    def pauseProducing(self) -> None:
        self.calls.append("pause")

    def resumeProducing(self) -> None:
        self.calls.append("resume")

    def stopProducing(self) -> None:
        self.calls.append("stop")
