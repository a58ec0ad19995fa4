"""Bodies are written by threads, with back-pressure, and take no more of the disk than they may."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from typing import Any

import pytest
from twisted.internet.error import ConnectionDone
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.web.resource import Resource

from cartd.server.request_body import HIGH, IN_MEMORY
from cartd.server.site import LimitedSite
from tests.channel_client import Connected
from tests.volume_parts import HeldThreads, InThisThread, logged

LOT = b"x" * IN_MEMORY
MOST = 10 * IN_MEMORY


class Reads(Resource):
    """Keeps the body of each request that it is asked to answer."""

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.bodies: list[bytes] = []

    def render(self, request: Any) -> bytes:
        self.bodies.append(request.content.read())
        return b"taken"


class Client:
    """One client after the other on a site whose threads the test turns by hand."""

    def __init__(self, threads: HeldThreads | None = None, **changed: Any) -> None:
        self.threads = threads or HeldThreads()
        self.connected = Connected(self.threads, max_manifest=MOST, **changed)
        self.reads = Reads()
        self.site: LimitedSite = self.connected.site
        self.site.resource = self.reads
        self.channel, self.transport = self.connect()

    def connect(self) -> tuple[Any, StringTransport]:
        channel: Any = self.site.buildProtocol(None)
        transport = StringTransport()
        channel.makeConnection(transport)
        return channel, transport

    def declare(self, length: int, *, expects: bool = False) -> None:
        head = f"POST /u HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n"
        self.channel.dataReceived(
            f"{head}{'Expect: 100-continue' if expects else 'X: y'}\r\n\r\n".encode()
        )

    def chunked(self) -> None:
        self.channel.dataReceived(
            b"POST /u HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        )

    def chunk(self, data: bytes) -> None:
        self.channel.dataReceived(b"%x\r\n%s\r\n" % (len(data), data))

    def send(self, data: bytes) -> None:
        self.channel.dataReceived(data)

    @property
    def paused(self) -> bool:
        return self.transport.producerState == "paused"

    @property
    def taken(self) -> int:
        return int(self.channel.bodies.taken)

    def answer(self) -> tuple[int, Any]:
        head, _, body = self.transport.value().partition(b"\r\n\r\n")
        return int(head.split()[1]), json.loads(body)

    def leave(self) -> None:
        self.channel.connectionLost(Failure(ConnectionDone()))


def test_a_short_body_is_read_from_memory() -> None:
    client = Client()
    client.declare(5)
    client.send(b"short")
    assert client.reads.bodies == [b"short"]
    assert client.threads.made == 0


def test_a_long_body_is_written_by_threads_in_its_order_before_it_is_read() -> None:
    client = Client()
    data = os.urandom(5 * IN_MEMORY)
    client.declare(len(data))
    for start in range(0, len(data), 1000):
        client.send(data[start : start + 1000])
        if start % 7000 == 0:
            client.threads.let_all_go()
    assert client.reads.bodies == []
    client.threads.let_all_go()
    assert client.reads.bodies == [data]


def test_a_client_that_sends_slowly_keeps_no_thread() -> None:
    client = Client()
    client.declare(2 * IN_MEMORY)
    client.send(LOT)
    for _ in range(100):
        client.send(b"x")
    assert client.threads.made == 1  # with what was in memory
    client.threads.let_all_go()
    assert not client.threads.held


def test_no_more_is_read_than_the_disk_takes() -> None:
    client = Client()
    client.declare(MOST)
    client.send(LOT + b"x")
    assert not client.paused
    client.send(b"x" * HIGH)
    assert client.paused
    client.channel.resumeProducing()  # as for a connection that can be written to again
    client.send(b"x")
    assert client.paused
    client.threads.let_one_go()
    assert not client.paused
    client.leave()
    client.threads.let_all_go()


def test_who_waits_for_the_disk_is_not_late() -> None:
    client = Client(idle_timeout=10.0, body_timeout=20.0)
    clock = client.connected.clock
    client.declare(MOST)
    client.send(LOT + b"x")
    client.send(b"x" * HIGH)
    clock.advance(100)
    assert not client.transport.disconnecting
    client.threads.let_all_go()
    clock.advance(9)
    assert not client.transport.disconnecting
    clock.advance(1)
    assert client.answer()[1]["limit"] == "server.idle_timeout"
    client.leave()


@pytest.mark.parametrize("under_way", [True, False])
def test_a_client_that_leaves_gives_back_what_it_has_taken(under_way: bool) -> None:
    client = Client()
    client.declare(3 * IN_MEMORY)
    client.send(LOT + b"x")
    if not under_way:
        client.threads.let_all_go()
    assert client.taken == 3 * IN_MEMORY
    client.leave()
    client.threads.let_all_go()
    assert client.taken == 0
    assert client.reads.bodies == []


def test_a_client_that_leaves_when_all_is_sent_is_not_answered() -> None:
    client = Client()
    client.declare(IN_MEMORY + 1)
    client.send(LOT + b"x")
    client.leave()
    client.threads.let_all_go()
    assert (client.reads.bodies, client.taken) == ([], 0)


def test_what_the_disk_takes_is_given_back_with_the_answer() -> None:
    client = Client()
    client.declare(IN_MEMORY + 1)
    client.send(LOT + b"x")
    client.threads.let_all_go()
    assert client.reads.bodies == [LOT + b"x"]
    assert client.taken == 0


def test_a_declared_body_that_finds_no_room_is_refused_before_it_is_asked_for() -> None:
    client = Client(body_space=4 * IN_MEMORY)
    first = client.channel
    client.declare(3 * IN_MEMORY)
    client.channel, client.transport = client.connect()
    client.declare(2 * IN_MEMORY, expects=True)
    status, body = client.answer()
    assert (status, body["limit"]) == (503, "server.body_space")
    assert tempfile.gettempdir() in body["message"]
    assert b"Retry-After: " in client.transport.value()
    assert b"100 Continue" not in client.transport.value()
    client.leave()
    assert client.taken == 3 * IN_MEMORY
    client.channel = first
    client.leave()
    assert client.taken == 0
    client.channel, client.transport = client.connect()
    client.declare(2 * IN_MEMORY, expects=True)
    assert b"100 Continue" in client.transport.value()
    client.leave()


def test_chunks_are_refused_when_they_find_no_room_and_short_bodies_never_are() -> None:
    client = Client(body_space=4 * IN_MEMORY)
    first = client.channel
    client.declare(3 * IN_MEMORY)
    client.channel, client.transport = client.connect()
    client.chunked()
    client.chunk(LOT[:-1])
    assert client.transport.value() == b""
    client.chunk(b"xy" * IN_MEMORY)
    status, body = client.answer()
    assert (status, body["limit"]) == (503, "server.body_space")
    client.leave()
    client.threads.let_all_go()
    assert client.taken == 3 * IN_MEMORY
    client.channel, client.transport = client.connect()
    client.declare(5)
    client.send(b"short")
    assert client.reads.bodies == [b"short"]
    for channel in (first, client.channel):
        client.channel = channel
        client.leave()


@pytest.mark.parametrize("declared", [True, False])
def test_a_body_larger_than_all_the_room_is_taken_if_it_is_alone(declared: bool) -> None:
    client = Client(body_space=IN_MEMORY + 1)
    data = LOT * 5
    if declared:
        client.declare(len(data))
        client.send(data)
    else:
        client.chunked()
        for _ in range(5):
            client.chunk(LOT)
        client.send(b"0\r\n\r\n")
    client.threads.let_all_go()
    assert (client.reads.bodies, client.taken) == ([data], 0)


@pytest.mark.parametrize(
    ("number", "status"), [(errno.ENOSPC, 507), (errno.EDQUOT, 507), (errno.EMFILE, 503)]
)
def test_a_disk_that_refuses_a_body_is_named(
    number: int, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(**_: object) -> Any:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(tempfile, "TemporaryFile", refused)
    client = Client()
    client.declare(3 * IN_MEMORY)
    client.send(LOT + b"x")
    with logged() as events:
        client.threads.let_all_go()
    code, body = client.answer()
    message = f"The body cannot be kept in {tempfile.gettempdir()}: {os.strerror(number)}"
    assert (code, body["message"]) == (status, message)
    assert message in [event.get("message") for event in events]
    assert client.transport.disconnecting
    client.send(LOT)
    client.leave()
    client.threads.let_all_go()
    assert client.taken == 0
    client.connected.channel.connectionLost()
    assert client.connected.clock.getDelayedCalls() == []


def test_a_body_is_closed_behind_the_thread_that_reads_it() -> None:
    client = Client()
    client.declare(3 * IN_MEMORY)
    client.send(LOT + b"x")
    client.threads.let_all_go()
    body = client.channel.requests[0].content
    with body._using() as there:
        assert there
        client.leave()
        client.threads.let_all_go()
        assert body.seek(0) == 0  # it is open still
    with pytest.raises(ValueError, match="closed"):
        body.read()
    with pytest.raises(ValueError, match="closed"):
        body.tell()


def test_threads_that_answer_at_once_do_as_well() -> None:
    client = Client(InThisThread())  # type: ignore[arg-type]
    client.declare(3 * IN_MEMORY)
    client.send(LOT * 3)
    assert client.reads.bodies == [LOT * 3]
