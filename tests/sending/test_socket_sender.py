"""SocketSender with real threads, files and sockets, in the service's site."""

from __future__ import annotations

import errno
import hashlib
import os
import select
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.interfaces import IPushProducer, IWriteDescriptor
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.ssl import optionsForClientTLS
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import capturedLogs
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET
from zope.interface.verify import verifyObject

from cartd.deferreds.threads import LimitedPool, P, T
from cartd.errors import VolumeDamaged
from cartd.http.paths import REQUEST_RULES
from cartd.http.request import LimitedRequest
from cartd.http.server import LimitedSite
from cartd.sending.reader import SENDFILE_MIN, TreeReader
from cartd.sending.sender import ClientDisconnected, State
from cartd.sending.sendfile import SocketSender, plain_socket
from cartd.tar.virtual_tar import Slice
from tests.support.sending import AtOnce, Sink
from tests.support.server_limits import limits
from tests.support.two_ends import BUFFER, GET, LAST_GET, Client, CountedThreads, reactor, until
from tests.support.volume_parts import InThisThread

SIZES = {"long": 40 * 2**20, "short": 1000, "again long": 5 * 2**20 + 1}
TRANSFER_SIZE = 2**20


class WatchedReader(TreeReader):
    """Records whether it is closed, and can block a thread until the test releases it."""

    def __init__(self, root: Path) -> None:
        slices = [Slice(name, size, 0, size) for name, size in SIZES.items()]
        super().__init__(root, iter(slices))
        self.released = threading.Event()
        self.released.set()
        self.held = threading.Event()
        self.counting = threading.Event()
        self.counting.set()
        self.closed = 0

    def send(self, out: socket.socket, limit: int) -> int:
        if not self.released.is_set():
            self.held.set()
            self.released.wait()
        return super().send(out, limit)

    def _send_coalesced(self, out: socket.socket) -> int:
        sent = super()._send_coalesced(out)
        self.counting.wait()
        return sent

    def close(self) -> None:
        self.closed += 1
        super().close()


class Download(Resource):
    """Responds to every GET with all files, and fires ``started`` with the first sender."""

    isLeaf = True

    def __init__(self, threads: CountedThreads, root: Path) -> None:
        super().__init__()
        self.threads = threads
        self.root = root
        self.readers: list[WatchedReader] = []
        self.senders: list[SocketSender] = []
        self.requests: list[Any] = []
        self.started: Deferred[None] = Deferred()
        self.outcomes: list[Any] = []
        self.done: Deferred[None] = Deferred()
        self.prepare: Callable[[WatchedReader], None] = lambda reader: None

    def render_GET(self, request: LimitedRequest) -> int:
        reader = WatchedReader(self.root)
        self.prepare(reader)
        self.readers.append(reader)
        self.requests.append(request)
        request.setHeader("Content-Length", str(sum(SIZES.values())))
        transport: Any = request.transport
        transport.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
        own_socket = plain_socket(transport, reactor)
        assert own_socket is not None
        sender = SocketSender(
            reader,
            self.threads,
            self.threads,
            request,
            own_socket,
            reactor,
            transfer_size=TRANSFER_SIZE,
        )
        self.senders.append(sender)
        self.done = sender.start()
        self.done.addCallback(lambda _: request.finish())
        self.done.addErrback(self._abort, transport)
        if len(self.senders) == 1:
            self.started.callback(None)
        return NOT_DONE_YET

    def _abort(self, failure: Failure, transport: Any) -> None:
        self.outcomes.append(failure.value)
        transport.abortConnection()


class Joined:
    """A server of downloads, and a client that has requested one."""

    def __init__(self, root: Path) -> None:
        self.threads = CountedThreads(reactor, 2)
        self.threads.start()
        self.server = Download(self.threads, root)
        self.site = LimitedSite(
            self.server, REQUEST_RULES, reactor, limits(), threads=InThisThread()
        )
        self.port = reactor.listenTCP(0, self.site, interface="127.0.0.1")
        self.client = Client()

    async def connect(self) -> None:
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", self.port.getHost().port)
        await endpoint.connect(Factory.forProtocol(lambda: self.client))
        await self.server.started

    async def close(self) -> None:
        await self.port.stopListening()
        for reader in self.server.readers:
            reader.released.set()
            reader.counting.set()
        await until(lambda: not self.threads.outstanding)
        self.threads.stop()

    @property
    def outcomes(self) -> list[Any]:
        return self.server.outcomes

    def stalled(self) -> bool:
        """Whether all buffers are full and no byte is sent any more."""
        [sender] = self.server.senders
        waiting = sender in reactor.getWriters()
        return waiting and not select.select([], [sender], [], 0)[1]

    def assert_all_let_go(self) -> None:
        assert all(sender.fileno() == -1 for sender in self.server.senders)
        assert [reader.closed > 0 for reader in self.server.readers] == [True] * len(
            self.server.readers
        )
        assert not [one for one in reactor.getWriters() if isinstance(one, SocketSender)]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tree")
    for name, size in SIZES.items():
        (root / name).write_bytes(os.urandom(size))
    return root


@pytest.fixture(scope="module")
def body(tree: Path) -> bytes:
    return b"".join((tree / name).read_bytes() for name in SIZES)


@pytest_twisted.async_yield_fixture
async def joined(tree: Path) -> AsyncIterator[Joined]:
    joined = Joined(tree)
    yield joined
    await joined.close()


@pytest_twisted.ensureDeferred
async def test_a_stalled_client_stops_it_until_it_reads(
    joined: Joined, body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[bool] = []
    monkeypatch.setattr(LimitedRequest, "on_send_pause", lambda _, waiting: waits.append(waiting))
    await joined.connect()
    await until(joined.stalled)
    assert waits[-1]
    assert joined.server.requests[0].sentLength < len(body) / 8
    joined.client.read_on()
    await joined.client.closed
    assert joined.client.received == len(body) == joined.server.requests[0].sentLength
    assert joined.client.digest.digest() == hashlib.sha256(body).digest()
    assert not waits[-1]
    assert joined.outcomes == []
    joined.assert_all_let_go()


@pytest_twisted.ensureDeferred
async def test_it_is_a_producer_and_a_descriptor(joined: Joined) -> None:
    await joined.connect()
    [sender] = joined.server.senders
    assert verifyObject(IPushProducer, sender) and verifyObject(IWriteDescriptor, sender)
    joined.client.disconnect()
    await until(lambda: bool(joined.outcomes))


@pytest_twisted.ensureDeferred
async def test_a_disconnect_frees_everything(joined: Joined) -> None:
    await joined.connect()
    await until(joined.stalled)
    joined.client.disconnect()
    await until(lambda: bool(joined.outcomes))
    assert isinstance(joined.outcomes[0], ClientDisconnected)
    joined.assert_all_let_go()


@pytest.mark.parametrize("how", ["the client leaves", "cancelled", "the reactor drops it"])
@pytest_twisted.ensureDeferred
async def test_nothing_is_released_while_a_thread_uses_it(joined: Joined, how: str) -> None:
    joined.server.prepare = lambda reader: reader.released.clear()
    await joined.connect()
    [reader], [sender] = joined.server.readers, joined.server.senders
    await until(reader.held.is_set)
    if how == "the client leaves":
        joined.client.disconnect()
        await until(lambda: joined.server.requests[0].channel is None)
    elif how == "cancelled":
        joined.server.done.cancel()
    else:
        sender.connectionLost(Failure(ConnectionError()))
    assert reader.closed == 0 and sender.fileno() >= 0 and joined.outcomes == []
    reader.released.set()
    await until(lambda: bool(joined.outcomes))
    assert isinstance(joined.outcomes[0], ClientDisconnected | CancelledError)
    joined.assert_all_let_go()
    joined.client.read_on()
    await joined.client.closed


@pytest.mark.parametrize("end", ["the thread returns", "the log is closed"])
@pytest_twisted.ensureDeferred
async def test_the_access_log_waits_for_the_thread_that_sends(
    joined: Joined, end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client has read all and disconnects before the thread has counted the last bytes."""
    for name in SIZES:
        monkeypatch.setitem(SIZES, name, 1000)
        (tmp_path / name).write_bytes(bytes(1000))
    joined.server.root = tmp_path
    joined.server.prepare = lambda reader: reader.counting.clear()
    with capturedLogs() as events:

        def logged() -> list[str]:
            return [event["line"] for event in events if "line" in event]

        await joined.connect()
        joined.client.read_on()
        await until(lambda: joined.client.received == 3000)
        joined.client.disconnect()
        await until(lambda: joined.server.requests[0].channel is None)
        assert logged() == []
        if end == "the thread returns":
            joined.server.readers[0].counting.set()
            await until(lambda: bool(logged()))
        else:
            joined.site.close_log()
        [line] = logged()
    assert f" 200 {'3000' if end == 'the thread returns' else '-'} " in line
    joined.server.readers[0].counting.set()
    await until(lambda: bool(joined.outcomes))
    joined.assert_all_let_go()


@pytest_twisted.ensureDeferred
async def test_a_missing_first_file_is_known_before_the_head_is_sent(joined: Joined) -> None:
    joined.server.root = joined.server.root / "nowhere"
    await joined.connect()
    joined.client.read_on()
    await joined.client.closed
    [outcome] = joined.outcomes
    assert isinstance(outcome, VolumeDamaged)
    assert joined.client.head == b"" and not joined.server.requests[0].startedWriting
    joined.assert_all_let_go()


@pytest_twisted.ensureDeferred
async def test_a_file_missing_later_breaks_the_connection(
    joined: Joined, tmp_path: Path, body: bytes
) -> None:
    joined.server.root = tmp_path
    (tmp_path / "long").write_bytes(bytes(SIZES["long"]))
    await joined.connect()
    joined.client.read_on()
    await joined.client.closed
    [outcome] = joined.outcomes
    assert isinstance(outcome, VolumeDamaged) and "short is missing" in str(outcome)
    assert joined.client.received < len(body)
    joined.assert_all_let_go()


@pytest_twisted.ensureDeferred
async def test_no_head_is_overtaken_by_its_body(tmp_path: Path, monkeypatch: Any) -> None:
    """Many responses on one connection, whose client starts to read when it is full."""
    monkeypatch.setitem(SIZES, "long", 70_001)
    monkeypatch.setitem(SIZES, "again long", 3)
    for name, size in SIZES.items():
        (tmp_path / name).write_bytes(name[:1].encode() * size)
    joined = Joined(tmp_path)
    joined.client = Client(20 * GET + LAST_GET)
    received: list[bytes] = []
    monkeypatch.setattr(joined.client, "dataReceived", received.append)
    await joined.connect()
    await until(lambda: _is_full(joined.server.requests[-1].transport))
    assert len(joined.server.requests) < 20
    joined.client.read_on()
    await joined.client.closed
    answers = b"".join(received).split(b"HTTP/1.1 200 OK\r\n")[1:]
    expected = b"l" * 70_001 + b"s" * 1000 + b"a" * 3
    assert [answer.partition(b"\r\n\r\n")[2] == expected for answer in answers] == [True] * 21
    assert joined.outcomes == []
    joined.assert_all_let_go()
    await joined.close()


def _is_full(transport: Any) -> bool:
    return not select.select([], [transport.socket], [], 0)[1]


class Watching:
    """A reactor that only registers writers; the test decides when a socket is writable."""

    def __init__(self) -> None:
        self.writers: list[Any] = []

    def getWriters(self) -> list[Any]:
        return list(self.writers)

    def addWriter(self, writer: Any) -> None:
        self.writers.append(writer)

    def removeWriter(self, writer: Any) -> None:
        if writer in self.writers:
            self.writers.remove(writer)


class Connection:
    """The connection as the reactor sees it; its descriptor does not exist."""

    def fileno(self) -> int:
        return 10**6


class Answer(Sink):
    """A request whose head is sent when the test says so, with a wrapped transport."""

    def __init__(self) -> None:
        super().__init__()
        self.connection = Connection()
        wrapper: Any = ProtocolWrapper(WrappingFactory(Factory()), Protocol())
        wrapper.transport = self.connection
        self.transport = wrapper
        self.sentLength = 0

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def on_send_pause(self, paused: bool) -> None:
        pass


class Counted(AtOnce):
    """A ThreadRunner that counts its calls."""

    def __init__(self) -> None:
        self.runs = 0

    def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        self.runs += 1
        return super().run(work, *args, **kwargs)


class StandaloneSender:
    """A sender whose calls run synchronously, between a real file and a real socket."""

    def __init__(self, path: Path, data: bytes = b"data") -> None:
        path.write_bytes(data)
        self.near, self.far = socket.socketpair()
        for end in (self.near, self.far):
            end.setblocking(False)
        self.reactor = Watching()
        self.answer = Answer()
        reader = TreeReader(path.parent, iter([Slice(path.name, len(data), 0, len(data))]))
        self.threads, self.cached_data_threads = Counted(), Counted()
        self.sender = SocketSender(
            reader,
            self.threads,
            self.cached_data_threads,
            self.answer,
            self.near,
            self.reactor,
            transfer_size=9,
        )
        self.outcomes: list[Any] = []
        self.sender.start().addBoth(self.outcomes.append)

    def become_writable(self) -> None:
        self.sender.doWrite()


@pytest.fixture
def unstarted(tmp_path: Path) -> Iterator[StandaloneSender]:
    unstarted = StandaloneSender(tmp_path / "file")
    yield unstarted
    unstarted.near.close()
    unstarted.far.close()


def test_it_waits_until_the_connection_has_sent_the_head(unstarted: StandaloneSender) -> None:
    assert unstarted.answer.written == [b""]
    unstarted.reactor.addWriter(unstarted.answer.connection)
    unstarted.become_writable()
    with pytest.raises(BlockingIOError):
        unstarted.far.recv(10)
    assert unstarted.sender.state is State.HEAD
    unstarted.reactor.removeWriter(unstarted.answer.connection)
    unstarted.become_writable()
    assert unstarted.far.recv(10) == b"data"


def test_when_all_is_sent_the_answer_has_no_producer_any_more(unstarted: StandaloneSender) -> None:
    assert unstarted.answer.producer is unstarted.sender
    unstarted.become_writable()
    assert unstarted.outcomes == [None]
    assert unstarted.answer.producer is None and unstarted.reactor.writers == []


@pytest.mark.parametrize("number", [errno.EPIPE, errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.EIO])
def test_only_connection_errors_are_client_disconnects(
    unstarted: StandaloneSender, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def send(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(TreeReader, "send", send)
    unstarted.become_writable()
    [failure] = unstarted.outcomes
    assert (failure.type is ClientDisconnected) == (number != errno.EIO)
    assert unstarted.answer.producer is None and unstarted.near.fileno() == -1


@pytest.mark.parametrize("cached", [True, False])
def test_cached_data_is_sent_by_few_threads(
    tmp_path: Path, cached: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not cached:
        monkeypatch.setattr(TreeReader, "is_cached", lambda *_: False)
    unstarted = StandaloneSender(tmp_path / "file", bytes(SENDFILE_MIN))
    unstarted.become_writable()
    assert (unstarted.threads.runs, unstarted.cached_data_threads.runs) == (
        (1, 1) if cached else (2, 0)
    )
    unstarted.sender.stopProducing()
    unstarted.far.close()


def test_a_limited_pool_runs_few_at_once_and_queues_in_order() -> None:
    held: list[Deferred[int]] = []

    class Held:
        def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
            held.append(Deferred())
            return held[-1].addCallback(lambda _: work(*args, **kwargs))

    few = LimitedPool(Held(), 2)
    done: list[int] = []
    failures: list[Failure] = []
    for number in range(4):
        few.run(lambda it: it, number).addCallbacks(done.append, failures.append)
    assert len(held) == 2
    held[1].callback(0)
    assert (done, len(held)) == ([1], 3)
    held[2].errback(OSError("disk"))
    few.run(lambda: 9).addCallback(done.append)
    for number in (0, 3, 4):
        held[number].callback(0)
    assert done == [1, 0, 3, 9] and len(failures) == 1


def test_over_tls_there_is_no_plain_socket() -> None:
    contexts = optionsForClientTLS("localhost")
    wrapped = TLSMemoryBIOFactory(contexts, True, Factory.forProtocol(Protocol))
    over_tls = wrapped.buildProtocol(None)
    over_tls.makeConnection(StringTransport())
    assert plain_socket(over_tls, reactor) is None
    assert plain_socket(StringTransport(), reactor) is None


def test_a_reactor_that_watches_no_descriptors_gets_none(unstarted: StandaloneSender) -> None:
    class Connected:
        def getHandle(self) -> socket.socket:
            return unstarted.near

    other = plain_socket(Connected(), reactor)
    assert other is not None and other.fileno() != unstarted.near.fileno()
    other.close()
    assert plain_socket(Connected(), Clock()) is None
