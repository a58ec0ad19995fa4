"""Two ends of a real connection, for tests of senders."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Callable
from typing import Any, TypeVar

from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from cartd.deferreds.threads import P, T, Threads

reactor: Any = _reactor
R = TypeVar("R")

BUFFER = 2**17
GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
LAST_GET = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


class CountedThreads(Threads):
    """Threads that count the calls whose results are pending."""

    outstanding = 0

    def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        self.outstanding += 1
        return super().run(work, *args, **kwargs).addBoth(self._back)

    def _back(self, result: R) -> R:
        self.outstanding -= 1
        return result


class Client(Protocol):
    """Sends a request, then reads only when the test says so; fires ``closed`` at the end."""

    def __init__(self, requests: bytes = LAST_GET) -> None:
        self.requests = requests
        self.digest = hashlib.sha256()
        self.head = b""
        self.received = 0
        self.closed: Deferred[None] = Deferred()

    def connectionMade(self) -> None:
        transport: Any = self.transport
        transport.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
        transport.pauseProducing()
        transport.write(self.requests)

    def read_on(self) -> None:
        transport: Any = self.transport
        transport.resumeProducing()

    def disconnect(self) -> None:
        transport: Any = self.transport
        transport.abortConnection()

    def dataReceived(self, data: bytes) -> None:
        if not self.received:
            self.head += data
            _, blank, data = self.head.partition(b"\r\n\r\n")
            if not blank:
                return
        self.received += len(data)
        self.digest.update(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.closed.callback(None)


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await deferLater(reactor, 0)
