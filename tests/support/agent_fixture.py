"""cartd's HTTP agent by itself, with a :class:`~tests.support.faulty_archive.FaultyArchive`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.web.http_headers import Headers
from twisted.web.iweb import IResponse

from cartd.archive import TlsPolicy
from cartd.archive.http_agent import Agent, Pool
from tests.support.archive_client_fixture import TEST_TIMEOUT, no_logged_errors, reactor
from tests.support.faulty_archive import FaultyArchive

KEPT = 2
IDLE_SECONDS = 30.0


class Collected(Protocol):
    """A body as it is delivered; ``on_data`` is called with each piece."""

    transport: Any

    def __init__(self, on_data: Callable[[Collected, bytes], object] = lambda *_: None) -> None:
        self.pieces: list[bytes] = []
        self.ended: Deferred[BaseException | None] = Deferred()
        self._on_data = on_data

    @property
    def data(self) -> bytes:
        return b"".join(self.pieces)

    def dataReceived(self, data: bytes) -> None:
        self.pieces.append(data)
        self._on_data(self, data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.ended.callback(reason.value)

    async def end(self) -> BaseException:
        """How the body ended."""
        reason = await self.ended.addTimeout(TEST_TIMEOUT, reactor)
        assert reason is not None
        return reason


@dataclass
class AgentClient:
    """The agent, its pool with a clock that the test advances, and the archive."""

    faulty: FaultyArchive
    url: str
    ca_file: Path | None = None
    clock: Clock = field(default_factory=Clock)
    reusable: list[bool] = field(default_factory=list)
    """For each response, whether its connection was reusable."""

    def __post_init__(self) -> None:
        self.pool = Pool(
            self.clock, max_idle=KEPT, idle_seconds=IDLE_SECONDS, on_response=self.reusable.append
        )
        self.agent = Agent(
            reactor, self.pool, TlsPolicy(ca_file=self.ca_file), connect_timeout=10.0
        )

    def ask(
        self, method: str, archive_id: str = "7", headers: Headers | None = None
    ) -> Deferred[IResponse]:
        asked = self.agent.request(method.encode(), (self.url + archive_id).encode(), headers)
        return asked.addTimeout(TEST_TIMEOUT, reactor)

    async def collect(self, method: str, archive_id: str = "7") -> tuple[bytes, BaseException]:
        """Send a request; return the complete body and how it ended."""
        body = Collected()
        (await self.ask(method, archive_id)).deliverBody(body)
        end = await body.end()
        return body.data, end

    async def until(self, condition: Callable[[], bool]) -> None:
        await self.faulty.until(condition).addTimeout(TEST_TIMEOUT, reactor)

    async def settled(self) -> None:
        """Wait until requests have been answered that are sent after all others."""
        for _ in range(3):
            await self.collect("HEAD", "settling")

    def connections(self, archive_id: str = "7") -> list[int]:
        """The connection of each request for the file."""
        target = f"/{archive_id}"
        return [asked.connection for asked in self.faulty.requests if asked.target == target]


@asynccontextmanager
async def agent_client(tls: Any = None, ca_file: Path | None = None) -> AsyncIterator[AgentClient]:
    """Ends by closing the pool, and fails if a connection, a timer or a logged error is left."""
    faulty = FaultyArchive(reactor)
    url = faulty.listen(tls)
    with no_logged_errors():
        asking = AgentClient(faulty, url, ca_file)
        try:
            yield asking
            await asking.pool.closeCachedConnections().addTimeout(TEST_TIMEOUT, reactor)
            await asking.until(lambda: faulty.open_connections == 0)
            assert asking.clock.getDelayedCalls() == []
        finally:
            await faulty.stop()
