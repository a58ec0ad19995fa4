"""A faulty archive over a real socket, for tests of its clients.

It speaks HTTP by hand, so that it can break any rule of it::

    with_archive = FaultyArchive(reactor)
    url = with_archive.listen()
    with_archive.put("12", b"bytes")                       # an honest file
    with_archive.put("13", b"bytes", tape_heads=2)         # on tape until POSTed, then for 2 HEADs
    with_archive.fault("12", truncated(3), method="GET")   # only its first GET is cut after 3 bytes
    with_archive.fault("12", status(503), times=None)      # and everything else fails for ever
    ...
    await with_archive.stop()

The faults are in :mod:`tests.support.archive_faults`.  It runs in the test's own reactor and
listens on a port of 127.0.0.1, so a service in another process can be pointed at it as well.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPullProducer
from twisted.internet.protocol import Protocol, ServerFactory, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from tests.support.archive_faults import (
    Close,
    Drip,
    Endless,
    Fault,
    Gate,
    Hang,
    Reset,
    Seen,
    Send,
    Step,
    StoredFile,
    head,
    honest,
)

_TLS_HELLO = b"\x16\x03"
"""The first byte of a TLS client (RFC 8446, section 5.1)."""


@dataclass(slots=True)
class _Planned:
    fault: Fault
    method: str | None
    first: int
    last: float


@dataclass(eq=False)
class FaultyArchive:
    """See the module.  ``base`` is a path below which its ids are, as ``/archive``."""

    reactor: Any
    base: str = ""
    files: dict[str, StoredFile] = field(default_factory=dict)
    requests: list[Seen] = field(default_factory=list)
    open_connections: int = 0
    total_connections: int = 0
    running: int = 0
    """Requests that are being answered now."""
    most_running: int = 0
    """The most requests that were answered at once."""
    bytes_sent: int = 0
    """Bytes given to sockets by ``Endless`` steps."""

    def __post_init__(self) -> None:
        self._planned: dict[str, list[_Planned]] = {}
        self._counts: dict[tuple[str, str], int] = {}
        self._waiting: list[tuple[Callable[[], bool], Deferred[None]]] = []
        self._connections: set[_Connection] = set()
        self._port: Any = None

    def listen(
        self, context_factory: Any = None, *, port: int = 0, interface: str = "127.0.0.1"
    ) -> str:
        """Begin to listen, over TLS if there is a context factory; return the URL."""
        factory = ServerFactory.forProtocol(lambda: _Connection(self))
        if context_factory is None:
            self._port = self.reactor.listenTCP(port, factory, interface=interface)
            return f"http://{interface}:{self.port}{self.base}/"
        self._port = self.reactor.listenSSL(port, factory, context_factory, interface=interface)
        return f"https://{interface}:{self.port}{self.base}/"

    @property
    def port(self) -> int:
        return int(self._port.getHost().port)

    async def stop(self) -> None:
        """Stop listening and drop all connections; fires when both is done."""
        await self._port.stopListening()
        for connection in tuple(self._connections):
            connection.transport.abortConnection()  # type: ignore[union-attr]
        await self.until(lambda: self.open_connections == 0)

    def drop_connections(self) -> None:
        """Close all connections that are open, as a restart of the archive would."""
        for connection in tuple(self._connections):
            connection.transport.abortConnection()  # type: ignore[union-attr]

    def put(
        self, archive_id: str, data: bytes, *, mtime: str = "", tape_heads: int | None = None
    ) -> None:
        """Hold a file; with ``tape_heads`` it is on tape until POSTed, then for so many HEADs."""
        self.files[archive_id] = StoredFile(
            data,
            mtime=mtime or "1700000000.25",
            on_tape=tape_heads is not None,
            tape_heads=tape_heads or 0,
        )

    def fault(
        self,
        archive_id: str,
        fault: Fault,
        *,
        method: str | None = None,
        request: int = 1,
        times: int | None = 1,
    ) -> None:
        """Misbehave at the ``request``-th request of a method (any if none), ``times`` in a row.

        Requests are counted for each id, and for each method where one is given.  The first fault
        that fits is taken; an id of ``*`` stands for every id that has no fitting fault of its own.
        """
        last = float("inf") if times is None else request + times - 1
        self._planned.setdefault(archive_id, []).append(_Planned(fault, method, request, last))

    def heal(self) -> None:
        """Drop all faults; responses that have begun are not affected."""
        self._planned.clear()

    def seen(self, method: str, archive_id: str | None = None) -> list[Seen]:
        """The requests of one method so far, for one id or all."""
        return [
            request
            for request in self.requests
            if request.method == method and archive_id in (None, self._archive_id(request.target))
        ]

    def until(self, condition: Callable[[], bool]) -> Deferred[None]:
        """Fire when ``condition`` holds; checked after each request, response and connection."""
        waiting: Deferred[None] = Deferred()
        self._waiting.append((condition, waiting))
        self._changed()
        return waiting

    def answer(self, request: Seen) -> Sequence[Step]:
        """Return the steps for a request: a planned fault, or the right response."""
        archive_id = self._archive_id(request.target)
        file = self.files.get(archive_id)
        planned_for = [*self._planned.get(archive_id, []), *self._planned.get("*", [])]
        for planned in planned_for:
            number = request.overall if planned.method is None else request.number
            fits = planned.method in (None, request.method)
            if fits and planned.first <= number <= planned.last:
                chosen: Sequence[Step] = planned.fault(request, file)
                return chosen
        return honest(request, file)

    def arrived(self, method: str, target: str, headers: Any, connection: int) -> Seen:
        archive_id = self._archive_id(target)
        for key in ((archive_id, method), (archive_id, "")):
            self._counts[key] = self._counts.get(key, 0) + 1
        number, overall = self._counts[archive_id, method], self._counts[archive_id, ""]
        request = Seen(method, target, tuple(headers), number, overall, connection)
        self.requests.append(request)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        self._changed()
        return request

    def answered(self) -> None:
        self.running -= 1
        self._changed()

    def connected(self, connection: _Connection) -> int:
        self._connections.add(connection)
        self.open_connections += 1
        self.total_connections += 1
        self._changed()
        return self.total_connections

    def disconnected(self, connection: _Connection) -> None:
        self._connections.discard(connection)
        self.open_connections -= 1
        self._changed()

    def _archive_id(self, target: str) -> str:
        return unquote(target.removeprefix(self.base).removeprefix("/"))

    def _changed(self) -> None:
        for waiting in tuple(self._waiting):
            if waiting in self._waiting and waiting[0]():
                self._waiting.remove(waiting)
                waiting[1].callback(None)


class _Connection(Protocol):
    """One connection: requests one after the other, each answered in steps."""

    def __init__(self, archive: FaultyArchive) -> None:
        self._archive = archive
        self._unread = b""
        self._steps: list[Step] = []
        self._answering = False
        self._lost = False

    def connectionMade(self) -> None:
        self._number = self._archive.connected(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._lost = True
        if self._answering:
            self._answering = False
            self._archive.answered()
        self._archive.disconnected(self)

    def dataReceived(self, data: bytes) -> None:
        self._unread += data
        if self._unread.startswith(_TLS_HELLO):
            self.transport.write(head(400))  # type: ignore[union-attr]
            self._end(Close())
            return
        self._next_request()

    def _next_request(self) -> None:
        text, found, rest = self._unread.partition(b"\r\n\r\n")
        if self._answering or not found:
            return
        self._unread = rest
        first, *lines = text.decode("latin-1").split("\r\n")
        method, target, _ = first.split(" ")
        headers = [(name, value.strip()) for name, _, value in (x.partition(":") for x in lines)]
        self._answering = True
        request = self._archive.arrived(method, target, headers, self._number)
        self._steps = list(self._archive.answer(request))
        self._next_step()

    def _next_step(self) -> None:
        transport: Any = self.transport
        while not self._lost:
            if not self._steps:
                self._answering = False
                self._archive.answered()
                self._next_request()
                return
            step = self._steps.pop(0)
            if isinstance(step, Send):
                transport.write(step.data)
            elif isinstance(step, Drip):
                self._drip(step, 0)
                return
            elif isinstance(step, Endless):
                transport.registerProducer(_Repeats(self._archive, transport, step.data), False)
                return
            elif isinstance(step, Gate):
                step.pass_by(self._next_step)
                return
            else:
                self._end(step)
                return

    def _drip(self, step: Drip, start: int) -> None:
        if self._lost:
            return
        if start >= len(step.data):
            self._next_step()
            return
        stop = start + step.piece
        self.transport.write(step.data[start:stop])  # type: ignore[union-attr]
        self._archive.reactor.callLater(step.delay, self._drip, step, stop)

    def _end(self, step: Step) -> None:
        transport: Any = self.transport
        if isinstance(step, Reset):
            linger = struct.pack("ii", 1, 0)
            transport.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        if not isinstance(step, Hang):
            transport.loseConnection()


@implementer(IPullProducer)
class _Repeats:
    def __init__(self, archive: FaultyArchive, transport: Any, data: bytes) -> None:
        self._archive = archive
        self._transport = transport
        self._data = data

    def resumeProducing(self) -> None:
        self._archive.bytes_sent += len(self._data)
        self._transport.write(self._data)

    def stopProducing(self) -> None:
        pass
