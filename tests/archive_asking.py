"""An :class:`~cartd.archive.Archive` that asks a :class:`~tests.faulty_archive.FaultyArchive`."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IConsumer, IPushProducer
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from twisted.web.client import HTTPConnectionPool
from zope.interface import implementer

from cartd.archive import Archive
from cartd.archive.client import archive_client
from tests.faulty_archive import FaultyArchive

T = TypeVar("T")

reactor: Any = _reactor

HEAD_TIMEOUT = 60.0
STALL_TIMEOUT = 30.0
PATIENCE = 20.0
"""Real seconds after which something that must happen is said to have failed."""


class Asking:
    """An archive, the client's side of it, and a clock that moves only when told."""

    def __init__(self, url: str, faulty: FaultyArchive, *, ca_file: Path | None = None) -> None:
        self.faulty = faulty
        self.clock = Clock()
        self.pool: HTTPConnectionPool
        client, self.pool = archive_client(
            reactor, connections=4, connect_timeout=10.0, ca_file=ca_file
        )
        self.archive = Archive(
            client, url, self.clock, head_timeout=HEAD_TIMEOUT, stall_timeout=STALL_TIMEOUT
        )

    async def until(self, condition: Callable[[], bool]) -> None:
        await self.faulty.until(condition).addTimeout(PATIENCE, reactor)

    async def fetch(self, archive_id: str) -> bytes:
        sink = Sink()
        await self.archive.fetch(archive_id, sink)
        assert sink.producer is None
        return bytes(sink.data)


def begun(work: Coroutine[Any, Any, T]) -> Deferred[T]:
    """Start a coroutine, and cancel it if it takes too long."""
    return Deferred.fromCoroutine(work).addTimeout(PATIENCE, reactor)


@implementer(IConsumer)
class Sink:
    """Keeps what it is given, and calls ``on_write`` after each piece."""

    def __init__(self, on_write: Callable[[Sink], object] = lambda sink: None) -> None:
        self.data = bytearray()
        self.producer: IPushProducer | None = None
        self.registered = 0
        self.first: Deferred[None] = Deferred()
        self._on_write = on_write

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        assert streaming
        assert self.producer is None
        self.producer = producer
        self.registered += 1

    def unregisterProducer(self) -> None:
        assert self.producer is not None
        self.producer = None

    def write(self, data: bytes) -> None:
        assert self.producer is not None
        self.data += data
        self._on_write(self)
        if not self.first.called:
            self.first.callback(None)


@asynccontextmanager
async def asking(
    *, base: str = "", tls: Any = None, ca_file: Path | None = None, claimed: str = ""
) -> AsyncIterator[Asking]:
    """Ends by closing the pool, and fails if a connection or a logged error is left.

    ``claimed`` is a scheme that is asked for although the archive does not speak it.
    """
    faulty = FaultyArchive(reactor, base=base)
    url = faulty.listen(tls)
    if claimed:
        url = claimed + url[url.index(":") :]
    with no_logged_errors():
        asked = Asking(url, faulty, ca_file=ca_file)
        try:
            yield asked
            await asked.pool.closeCachedConnections()
            await asked.until(lambda: faulty.open_connections == 0)
            assert asked.clock.getDelayedCalls() == []
        finally:
            await faulty.stop()


@contextmanager
def no_logged_errors() -> Iterator[None]:
    """Fails if Twisted logged an error, as for a Deferred whose failure nobody took."""
    failures: list[Any] = []

    @implementer(ILogObserver)
    def observe(event: LogEvent) -> None:
        if "log_failure" in event:
            failures.append(event["log_failure"])

    globalLogPublisher.addObserver(observe)
    try:
        yield
        gc.collect()
        assert failures == []
    finally:
        globalLogPublisher.removeObserver(observe)
