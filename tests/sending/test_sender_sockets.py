"""The sender between real threads and real sockets, with twisted.web in between."""

from __future__ import annotations

import hashlib
import select
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.protocol import Factory
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request, Site

from cartd.deferreds.threads import Threads
from cartd.errors import VolumeDamaged
from cartd.sending.sender import ClientDisconnected, PushSender
from tests.support.sending import Bytes
from tests.support.two_ends import BUFFER, Client, CountedThreads, reactor, until

SIZE, CHUNK = 64 * 2**20, 2**18
BODY = hashlib.shake_128(b"body").digest(2**20) * (SIZE // 2**20)


class WatchedSender(PushSender):
    """One that says whether it is paused."""

    paused = False

    def pauseProducing(self) -> None:
        self.paused = True
        super().pauseProducing()

    def resumeProducing(self) -> None:
        self.paused = False
        super().resumeProducing()


class Download(Resource):
    """Answers every GET with the whole body, and fires ``started`` with the sender."""

    isLeaf = True

    def __init__(self, threads: Threads) -> None:
        super().__init__()
        self.threads = threads
        self.reader = Bytes(BODY)
        self.started: Deferred[WatchedSender] = Deferred()
        self.outcome: Deferred[None] = Deferred()
        self.transport: Any = None

    def render_GET(self, request: Request) -> int:
        self.transport = request.transport
        self.transport.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
        request.setHeader("Content-Length", str(SIZE))
        sender = WatchedSender(self.reader, self.threads, request, CHUNK)
        done = sender.start()
        done.addCallbacks(lambda _: request.finish(), self.abort)
        done.addBoth(self.outcome.callback)
        self.started.callback(sender)
        return NOT_DONE_YET

    def abort(self, failure: Failure) -> Failure:
        self.transport.abortConnection()
        return failure


class Joined:
    """A server with one download, and a client that has asked for it."""

    def __init__(self) -> None:
        self.threads = CountedThreads(reactor, 2)
        self.threads.start()
        self.server = Download(self.threads)
        self.port = reactor.listenTCP(0, Site(self.server), interface="127.0.0.1")
        self.client = Client()

    async def connect(self) -> WatchedSender:
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", self.port.getHost().port)
        await endpoint.connect(Factory.forProtocol(lambda: self.client))
        return await self.server.started

    async def close(self) -> None:
        await self.port.stopListening()
        self.threads.stop()

    def stalled(self, sender: WatchedSender) -> bool:
        """Whether nothing moves any more: every buffer on the way is full."""
        _, writable, _ = select.select([], [self.server.transport.socket], [], 0)
        return sender.paused and not self.threads.outstanding and not writable


@pytest_twisted.async_yield_fixture
async def joined() -> AsyncIterator[Joined]:
    joined = Joined()
    yield joined
    await joined.close()


@pytest_twisted.ensureDeferred
async def test_a_stalled_client_stops_the_sender_until_it_reads(joined: Joined) -> None:
    sender = await joined.connect()
    reader = joined.server.reader
    await until(lambda: joined.stalled(sender) or reader.at == SIZE)
    assert reader.at < SIZE / 8
    joined.client.read_on()
    await joined.client.closed
    await joined.server.outcome
    assert joined.client.received == SIZE
    assert joined.client.digest.digest() == hashlib.sha256(BODY).digest()
    assert reader.closed == 1


@pytest_twisted.ensureDeferred
async def test_a_disconnect_frees_everything(joined: Joined) -> None:
    sender = await joined.connect()
    await until(lambda: joined.stalled(sender))
    joined.client.disconnect()
    with pytest.raises(ClientDisconnected):
        await joined.server.outcome
    assert joined.server.reader.closed == 1


@pytest_twisted.ensureDeferred
async def test_a_file_that_is_missing_breaks_the_connection(joined: Joined) -> None:
    joined.server.reader.fail_after = 40
    await joined.connect()
    joined.client.read_on()
    await joined.client.closed
    with pytest.raises(VolumeDamaged):
        await joined.server.outcome
    assert joined.client.received < SIZE
    assert joined.server.reader.closed == 1
