"""A client of an archive with faults (:mod:`tests.support.faulty_archive`)."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pytest
import trustme
from OpenSSL import SSL
from treq.client import HTTPClient
from twisted.internet import reactor as _reactor
from twisted.internet import ssl
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IConsumer, IPushProducer
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from twisted.web.iweb import IPolicyForHTTPS
from zope.interface import implementer

from cartd.archive import ArchiveClient, ArchiveError, TlsPolicy
from tests.support.faulty_archive import FaultyArchive

T = TypeVar("T")

reactor: Any = _reactor

HEAD_TIMEOUT = 60.0
STALL_TIMEOUT = 30.0
MIN_RATE = 10.0
TEST_TIMEOUT = 20.0
"""Real seconds after which a wait fails the test."""

DATA = bytes(range(256)) * 40


class ClientFactory(Protocol):
    """A client over some agent, and what holds its connections."""

    def __call__(
        self, reactor: Any, *, connections: int, connect_timeout: float, policy: IPolicyForHTTPS
    ) -> tuple[HTTPClient, Any]: ...


class ClientUnderTest:
    """An archive, its client, and a clock that the test advances."""

    def __init__(
        self,
        make_client: ClientFactory,
        url: str,
        faulty: FaultyArchive,
        *,
        min_rate: float = MIN_RATE,
        policy: IPolicyForHTTPS | None = None,
    ) -> None:
        self.faulty = faulty
        self.clock = Clock()
        client, self.pool = make_client(
            reactor, connections=4, connect_timeout=10.0, policy=policy or TlsPolicy()
        )
        self.archive = ArchiveClient(
            client,
            url,
            self.clock,
            now=self.clock.seconds,
            head_timeout=HEAD_TIMEOUT,
            stall_timeout=STALL_TIMEOUT,
            min_rate=min_rate,
        )

    async def until(self, condition: Callable[[], bool]) -> None:
        await self.faulty.until(condition).addTimeout(TEST_TIMEOUT, reactor)

    async def fetch(self, archive_id: str) -> bytes:
        sink = Sink()
        await self.archive.fetch(archive_id, sink)
        assert sink.producer is None
        return bytes(sink.data)

    async def ask(self, method: str) -> object:
        """Request file 7 by one of the three methods."""
        if method == "HEAD":
            return await self.archive.status("7")
        if method == "POST":
            await self.archive.stage("7")
            return None
        return await self.fetch("7")

    async def settled(self) -> None:
        """Wait until requests have been answered that are sent after all others."""
        for _ in range(3):
            await self.archive.status("7")


async def failure_of(awaited: Awaitable[Any]) -> ArchiveError:
    with pytest.raises(ArchiveError) as caught:
        await awaited
    return caught.value


def begun(work: Coroutine[Any, Any, T]) -> Deferred[T]:
    """Start a coroutine, and cancel it if it takes too long."""
    return Deferred.fromCoroutine(work).addTimeout(TEST_TIMEOUT, reactor)


@implementer(IConsumer)
class Sink:
    """Collects what is written, and calls ``on_write`` after each piece."""

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


class Offers(ssl.ContextFactory):
    """A server's side of TLS with a certificate of trustme's.

    ``newest`` is the newest version that it speaks; with ``clients_of``, a client must show a
    certificate of that authority's.
    """

    def __init__(
        self,
        certificate: trustme.LeafCert,
        *,
        newest: int = SSL.TLS1_3_VERSION,
        clients_of: trustme.CA | None = None,
    ) -> None:
        self._context = SSL.Context(SSL.TLS_SERVER_METHOD)
        self._context.set_max_proto_version(newest)
        if newest < SSL.TLS1_2_VERSION:
            self._context.set_cipher_list(b"ALL:@SECLEVEL=0")  # it would really speak it
        certificate.configure_cert(self._context)
        if clients_of is not None:
            clients_of.configure_trust(self._context)
            self._context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT)
            self._context.set_session_id(b"archive")

    def getContext(self) -> SSL.Context:
        return self._context


@asynccontextmanager
async def asking(
    make_client: ClientFactory,
    *,
    base: str = "",
    tls: Any = None,
    ca_file: Path | None = None,
    cert_file: Path | None = None,
    claimed: str = "",
    min_rate: float = MIN_RATE,
) -> AsyncIterator[ClientUnderTest]:
    """Ends by closing the pool, and fails if a connection or a logged error is left.

    ``claimed`` is a scheme that is asked for although the archive does not speak it.
    """
    faulty = FaultyArchive(reactor, base=base)
    url = faulty.listen(tls)
    if claimed:
        url = claimed + url[url.index(":") :]
    with no_logged_errors():
        policy = TlsPolicy(ca_file=ca_file, cert_file=cert_file)
        asked = ClientUnderTest(make_client, url, faulty, min_rate=min_rate, policy=policy)
        try:
            yield asked
            await asked.pool.closeCachedConnections()
            await asked.until(lambda: faulty.open_connections == 0)
            assert asked.clock.getDelayedCalls() == []
        finally:
            await faulty.stop()


@contextmanager
def no_logged_errors() -> Iterator[None]:
    """Fails if Twisted logged an error, as for a Deferred whose failure was not handled."""
    failures: list[Any] = []

    @implementer(ILogObserver)
    def observe(event: LogEvent) -> None:
        if "log_failure" in event:
            failures.append(event["log_failure"])

    globalLogPublisher.addObserver(observe)
    gc.freeze()  # Only new objects need be collected.
    try:
        yield
        gc.collect()
        assert failures == []
    finally:
        globalLogPublisher.removeObserver(observe)
