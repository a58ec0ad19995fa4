"""Fixtures for the tests of staging: a scripted archive and a complete staging context.

They wait only for the test's clock and for Deferreds that the test controls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IConsumer, IPushProducer
from twisted.internet.task import Clock
from zope.interface import implementer

from cartd.archive import ArchiveClient, ArchiveError, FileState
from cartd.archive.circuit_breaker import CircuitBreaker, ProbeTargets
from cartd.archive.concurrency_limit import AdaptiveLimit
from cartd.archive.outage_status import OutageStatus
from cartd.archive.retry import RetryPolicy
from cartd.deferreds.fair_semaphore import FairSemaphore
from cartd.deferreds.rate_limit import FairRateLimiter
from cartd.deferreds.threads import ThreadRunner
from cartd.errors import Problem
from cartd.integrity.recovery import Recovery
from cartd.model import Cart
from cartd.sending.tar_index_cache import TarIndexCache
from cartd.staging import ReserveSpace, StagingContext
from cartd.volume import Volume
from tests.support.sqlite_store import SqliteStore
from tests.support.volume_parts import InThisThread

MTIME = 1_234_567_890
"""Of every file of the archive."""


class ScriptedArchive(ArchiveClient):
    """Files by their ids.  Requests in ``holds`` wait; those in ``fails`` fail."""

    def __init__(self, files: Mapping[str, bytes] | None = None) -> None:
        self.files = dict(files or {})
        self.on_tape: set[str] = set()
        self.comes_at: dict[str, float] = {}
        """When files come from tape, on the clock ``seconds``."""
        self.seconds: Callable[[], float] = lambda: 0.0
        self.asks_to_wait: dict[str, float] = {}
        """The ``Retry-After`` of responses for files on tape."""
        self.asked: list[tuple[str, str]] = []
        self.holds: dict[tuple[str, str], Deferred[None]] = {}
        self.fails: dict[tuple[str, str], list[Exception]] = {}
        """The errors of the next requests, in order."""
        self.failure: Exception | None = None
        """If set, all requests fail with it."""
        self.bad: dict[str, Exception] = {}
        """The errors of these files."""
        self.running = 0
        self.most_running = 0

    def times(self, method: str, archive_id: str = "") -> int:
        """Return the number of requests, for one file or all."""
        return sum(one == method and archive_id in ("", name) for one, name in self.asked)

    async def status(self, archive_id: str) -> FileState:
        await self._answer("HEAD", archive_id)
        comes_at = self.comes_at.get(archive_id, 0.0)
        on_disk = archive_id not in self.on_tape and comes_at <= self.seconds()
        retry_after = None if on_disk else self.asks_to_wait.get(archive_id)
        return FileState(len(self.files[archive_id]), MTIME, on_disk, retry_after)

    async def stage(self, archive_id: str) -> float | None:
        await self._answer("POST", archive_id)
        return self.asks_to_wait.get(archive_id)

    async def fetch(self, archive_id: str, sink: IConsumer) -> None:
        await self._answer("GET", archive_id)
        sink.registerProducer(_Unstoppable(), True)
        sink.write(self.files[archive_id])
        sink.unregisterProducer()

    async def _answer(self, method: str, archive_id: str) -> None:
        self.asked.append((method, archive_id))
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            if held := self.holds.get((method, archive_id)) or self.holds.get((method, "*")):
                await held
        finally:
            self.running -= 1
        if failure := self.failure or self.bad.get(archive_id):
            raise failure.with_traceback(None)  # else what raised it before stays with it
        if failures := self.fails.get((method, archive_id)):
            raise failures.pop(0)


@implementer(IPushProducer)
class _Unstoppable:
    """A producer that has already sent everything."""

    def pauseProducing(self) -> None:
        pass

    resumeProducing = stopProducing = pauseProducing


class Bench:
    """A complete staging context; random waits have their mean length."""

    def __init__(
        self,
        store: SqliteStore,
        root: Path,
        files: Mapping[str, bytes],
        threads: ThreadRunner | None = None,
    ) -> None:
        self.clock = Clock()
        self.set_ahead = 0.0
        """Seconds by which the wall clock was set ahead of the monotonic clock."""
        self.store = store
        self.archive = ScriptedArchive(files)
        self.volume = Volume(root, threads or InThisThread())
        self.volume.prepare()
        self.root = root
        self.reserve: ReserveSpace = self._reserve
        self.tries = 3
        self.outage_limit = 86_400.0
        self.tape_poll_rate = 100
        self.recall_retry_interval = 21_600.0
        self.holder = "me"
        self.slots: Callable[[], int] = lambda: 0

    def now(self) -> float:
        return self.clock.seconds() + self.set_ahead

    async def _reserve(
        self, cart: Cart, holder: str, *, bytes_total: int, volume_bytes: int
    ) -> None:
        await self.store.progress.reserve(
            cart.id, holder, bytes_total=bytes_total, volume_bytes=volume_bytes
        )

    def context(
        self, *, connections: int = 4, divisors: Mapping[str, int] | None = None
    ) -> StagingContext:
        """``divisors``: into how many the carts of each owner cut what they share; one by
        default."""
        concurrency_limit = AdaptiveLimit(connections, self.clock.seconds)
        self.outage_status = OutageStatus(self.store.progress, self.holder, self.clock, self.now)
        self.slots = concurrency_limit.current
        semaphore = FairSemaphore(concurrency_limit.current, self.clock)
        breaker = CircuitBreaker(
            self.archive.status,
            semaphore,
            ProbeTargets(self.store.carts),
            self.outage_status,
            self.clock,
            lambda: 0.5,
            limit=self.outage_limit,
            url="http://archive.example:8080/",
        )
        return StagingContext(
            store=self.store,
            volume=self.volume,
            archive=self.archive,
            reserve=self.reserve,
            tar_indexes=TarIndexCache(self.store.carts, self.store.statuses, InThisThread()),
            breaker=breaker,
            concurrency_limit=concurrency_limit,
            retry_policy=RetryPolicy(
                self.tries, semaphore, breaker, concurrency_limit, self.clock, lambda: 0.5
            ),
            poll_limiter=FairRateLimiter(self.tape_poll_rate, self.clock),
            recall_retry_interval=self.recall_retry_interval,
            clock=self.clock,
            now=self.now,
            share_divisor=lambda owner: (divisors or {}).get(owner or "", 1),
        )

    def recovery(self) -> Recovery:
        tar_indexes = TarIndexCache(self.store.carts, self.store.statuses, InThisThread())
        return Recovery(self.store, self.volume, tar_indexes, self.clock, self.now)

    def put(
        self,
        names: Iterable[str] = (),
        uid: str = "mine",
        *,
        bundle: bool = False,
        owner: str | None = None,
        max_failed: int | None = None,
    ) -> Cart:
        """Return a posted cart of all files of the archive, or of some."""
        wanted = list(names) or list(self.archive.files)
        files = {name: self.archive.files[name] for name in wanted}
        return self.store.post(
            uid, files, bundle=bundle, owner=owner, now=self.now(), max_failed=max_failed
        )

    def times_until(self, what: Any, *, seconds: float) -> list[float]:
        """Advance the clock in small steps; return the times when ``what()`` changed."""
        begun, changes, before = self.clock.seconds(), [], what()
        while self.clock.seconds() - begun < seconds:
            self.clock.advance(0.125)
            if what() != before:
                changes.append(self.clock.seconds() - begun)
                before = what()
        return changes


def missing(message: str = "404") -> ArchiveError:
    return ArchiveError(message, retryable=False, problem=Problem.FILE_NOT_IN_ARCHIVE)


def passing(message: str = "not now", *, retry_after: float | None = None) -> ArchiveError:
    return ArchiveError(message, retryable=True, retry_after=retry_after)


def unavailable(message: str = "503", *, retry_after: float | None = None) -> ArchiveError:
    return ArchiveError(
        message, retryable=True, retry_after=retry_after, outage=True, unavailable=True
    )


def outage(
    message: str = "the archive refuses the connection", *, retry_after: float | None = None
) -> ArchiveError:
    return ArchiveError(message, retryable=True, retry_after=retry_after, outage=True)
