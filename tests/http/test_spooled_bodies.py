"""Request bodies are spooled by threads, with back-pressure and a limit on disk space."""

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

from cartd.http.request_limits import HIGH_WATER, MAX_IN_MEMORY
from cartd.http.server import LimitedSite
from tests.support.channel_client import Connected
from tests.support.volume_parts import HeldThreads, InThisThread, logged

CHUNK = b"x" * MAX_IN_MEMORY
LIMIT = 10 * MAX_IN_MEMORY


class Reads(Resource):
    """Stores the body of each request."""

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.bodies: list[bytes] = []

    def render(self, request: Any) -> bytes:
        self.bodies.append(request.content.read())
        return b"taken"


class Client:
    """One client after the other on a site whose threads the test controls."""

    def __init__(self, threads: HeldThreads | None = None, **changed: Any) -> None:
        self.threads = threads or HeldThreads()
        self.connected = Connected(self.threads, max_manifest_size=LIMIT, **changed)
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
    def used(self) -> int:
        return int(self.channel.temp_file_limit.used)

    def answer(self) -> tuple[int, Any]:
        head, _, body = self.transport.value().partition(b"\r\n\r\n")
        return int(head.split()[1]), json.loads(body)

    def disconnect(self) -> None:
        self.channel.connectionLost(Failure(ConnectionDone()))


def test_a_short_body_is_read_from_memory() -> None:
    client = Client()
    client.declare(5)
    client.send(b"short")
    assert client.reads.bodies == [b"short"]
    assert client.threads.made == 0


def test_long_body_is_spooled_in_order() -> None:
    client = Client()
    data = os.urandom(5 * MAX_IN_MEMORY)
    client.declare(len(data))
    for start in range(0, len(data), 1000):
        client.send(data[start : start + 1000])
        if start % 7000 == 0:
            client.threads.run_all()
    assert client.reads.bodies == []
    client.threads.run_all()
    assert client.reads.bodies == [data]


def test_slow_client_occupies_no_thread() -> None:
    client = Client()
    client.declare(2 * MAX_IN_MEMORY)
    client.send(CHUNK)
    for _ in range(100):
        client.send(b"x")
    assert client.threads.made == 1  # including the bytes in memory
    client.threads.run_all()
    assert not client.threads.held


def test_reading_pauses_while_the_disk_is_slow() -> None:
    client = Client()
    client.declare(LIMIT)
    client.send(CHUNK + b"x")
    assert not client.paused
    client.send(b"x" * HIGH_WATER)
    assert client.paused
    client.channel.resumeProducing()  # as for a connection that becomes writable again
    client.send(b"x")
    assert client.paused
    client.threads.run_one()
    assert not client.paused
    client.disconnect()
    client.threads.run_all()


def test_disk_pause_does_not_count_as_client_timeout() -> None:
    client = Client(idle_timeout=10.0, body_timeout=20.0)
    clock = client.connected.clock
    client.declare(LIMIT)
    client.send(CHUNK + b"x")
    client.send(b"x" * HIGH_WATER)
    clock.advance(100)
    assert not client.transport.disconnecting
    client.threads.run_all()
    clock.advance(9)
    assert not client.transport.disconnecting
    clock.advance(1)
    assert client.answer()[1]["limit"] == "server.idle_timeout"
    client.disconnect()


@pytest.mark.parametrize("under_way", [True, False])
def test_disconnect_releases_reserved_space(under_way: bool) -> None:
    client = Client()
    client.declare(3 * MAX_IN_MEMORY)
    client.send(CHUNK + b"x")
    if not under_way:
        client.threads.run_all()
    assert client.used == 3 * MAX_IN_MEMORY
    client.disconnect()
    client.threads.run_all()
    assert client.used == 0
    assert client.reads.bodies == []


def test_client_that_disconnects_after_its_body_gets_no_response() -> None:
    client = Client()
    client.declare(MAX_IN_MEMORY + 1)
    client.send(CHUNK + b"x")
    client.disconnect()
    client.threads.run_all()
    assert (client.reads.bodies, client.used) == ([], 0)


def test_space_is_released_with_the_response() -> None:
    client = Client()
    client.declare(MAX_IN_MEMORY + 1)
    client.send(CHUNK + b"x")
    client.threads.run_all()
    assert client.reads.bodies == [CHUNK + b"x"]
    assert client.used == 0


def test_declared_body_without_space_is_rejected_early() -> None:
    client = Client(temp_file_limit=4 * MAX_IN_MEMORY)
    first = client.channel
    client.declare(3 * MAX_IN_MEMORY)
    client.channel, client.transport = client.connect()
    client.declare(2 * MAX_IN_MEMORY, expects=True)
    status, body = client.answer()
    assert (status, body["limit"]) == (503, "server.temp_file_limit")
    assert tempfile.gettempdir() in body["message"]
    assert b"Retry-After: " in client.transport.value()
    assert b"100 Continue" not in client.transport.value()
    client.disconnect()
    assert client.used == 3 * MAX_IN_MEMORY
    client.channel = first
    client.disconnect()
    assert client.used == 0
    client.channel, client.transport = client.connect()
    client.declare(2 * MAX_IN_MEMORY, expects=True)
    assert b"100 Continue" in client.transport.value()
    client.disconnect()


def test_chunked_body_without_space_is_rejected() -> None:
    client = Client(temp_file_limit=4 * MAX_IN_MEMORY)
    first = client.channel
    client.declare(3 * MAX_IN_MEMORY)
    client.channel, client.transport = client.connect()
    client.chunked()
    client.chunk(CHUNK[:-1])
    assert client.transport.value() == b""
    client.chunk(b"xy" * MAX_IN_MEMORY)
    status, body = client.answer()
    assert (status, body["limit"]) == (503, "server.temp_file_limit")
    client.disconnect()
    client.threads.run_all()
    assert client.used == 3 * MAX_IN_MEMORY
    client.channel, client.transport = client.connect()
    client.declare(5)
    client.send(b"short")
    assert client.reads.bodies == [b"short"]
    for channel in (first, client.channel):
        client.channel = channel
        client.disconnect()


@pytest.mark.parametrize("declared", [True, False])
def test_single_body_over_the_space_limit_is_accepted(declared: bool) -> None:
    client = Client(temp_file_limit=MAX_IN_MEMORY + 1)
    data = CHUNK * 5
    if declared:
        client.declare(len(data))
        client.send(data)
    else:
        client.chunked()
        for _ in range(5):
            client.chunk(CHUNK)
        client.send(b"0\r\n\r\n")
    client.threads.run_all()
    assert (client.reads.bodies, client.used) == ([data], 0)


@pytest.mark.parametrize(
    ("number", "status"), [(errno.ENOSPC, 507), (errno.EDQUOT, 507), (errno.EMFILE, 503)]
)
def test_disk_error_names_the_directory(
    number: int, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(**_: object) -> Any:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(tempfile, "TemporaryFile", refused)
    client = Client()
    client.declare(3 * MAX_IN_MEMORY)
    client.send(CHUNK + b"x")
    with logged() as events:
        client.threads.run_all()
    code, body = client.answer()
    message = f"Cannot store the request body in {tempfile.gettempdir()}: {os.strerror(number)}"
    assert (code, body["message"]) == (status, message)
    assert message in [event.get("message") for event in events]
    assert client.transport.disconnecting
    client.send(CHUNK)
    client.disconnect()
    client.threads.run_all()
    assert client.used == 0
    client.connected.channel.connectionLost()
    assert client.connected.clock.getDelayedCalls() == []


def test_body_in_use_is_closed_after_its_reader() -> None:
    client = Client()
    client.declare(3 * MAX_IN_MEMORY)
    client.send(CHUNK + b"x")
    client.threads.run_all()
    body = client.channel.requests[0].content
    with body._file_in_use() as is_open:
        assert is_open
        client.disconnect()
        client.threads.run_all()
        assert body.seek(0) == 0  # still open
    with pytest.raises(ValueError, match="closed"):
        body.read()
    with pytest.raises(ValueError, match="closed"):
        body.tell()


def test_synchronous_threads_work() -> None:
    client = Client(InThisThread())  # type: ignore[arg-type]
    client.declare(3 * MAX_IN_MEMORY)
    client.send(CHUNK * 3)
    assert client.reads.bodies == [CHUNK * 3]
