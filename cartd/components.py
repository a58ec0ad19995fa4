"""Builds and connects the components that work on one store and one volume."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from math import inf
from typing import Any

from twisted.internet.defer import Deferred, TimeoutError
from twisted.logger import Logger

from cartd.archive import ArchiveClient, TlsPolicy, http_client
from cartd.archive.circuit_breaker import CircuitBreaker, ProbeTargets
from cartd.archive.concurrency_limit import AdaptiveLimit
from cartd.archive.outage_status import OutageStatus
from cartd.archive.retry import RetryPolicy
from cartd.carts.delete import CONCURRENCY, Removal
from cartd.carts.download import AccessTimes, Downloads, Pins
from cartd.config import Config
from cartd.deferreds.fair_semaphore import FairSemaphore
from cartd.deferreds.rate_limit import FairRateLimiter
from cartd.deferreds.tasks import with_timeout
from cartd.deferreds.threads import DedicatedThread, Threads
from cartd.errors import Unavailable
from cartd.eviction.evictor import Evictor, SpaceRules
from cartd.integrity.recovery import Recovery, Syncing
from cartd.integrity.repair import Orphans, Repair
from cartd.integrity.scrub import CartVerifier
from cartd.metrics import Metrics
from cartd.model import Cart
from cartd.sending.tar_index_cache import TarIndexCache
from cartd.staging import StagingContext
from cartd.staging.stager import LEASE_SECONDS, STALL_TIMEOUT, STOP_STEP_TIMEOUT, Stager
from cartd.status.exposition import Exposition, ReactorLag
from cartd.status.health import (
    ArchiveCheck,
    DatabaseCheck,
    Health,
    RecoveryCheck,
    SpaceCheck,
    VolumeCheck,
)
from cartd.status.overview import LastDay, Overviews
from cartd.store import Store
from cartd.volume import Volume
from cartd.volume.file_system import FileSystem
from cartd.volume.locks import ProcessLocks

THREADS = 16
"""Threads for the disk: enough that slow reads do not wait for each other."""
REMOVAL_THREADS = CONCURRENCY
"""Threads for the removal of carts, so that nothing else waits for a large cart."""

log = Logger()

_WITHOUT_LOCKS = (
    "The volume {} has no file locks ({}). After a crash of a process, the carts that it was"
    f" staging wait up to {LEASE_SECONDS:.0f} s for another process; and a cart that one process is"
    " sending may be removed by another. Mount the volume with locks (Lustre: -o flock), or run a"
    " single process (docs/reliability.md)"
)


class Components:
    """The components of the service and of the commands, connected but not started.

    Timers use the clock of ``reactor``, dates use ``now``, which returns Unix time.
    """

    def __init__(
        self,
        config: Config,
        reactor: Any,
        volume_number: int | None,
        now: Callable[[], float] = time.time,
        *,
        warn: Callable[[str], None] = lambda line: log.warn("{line}", line=line),
    ) -> None:
        """``volume_number`` is the result of :func:`cartd.integrity.recovery.bind_volume`.

        ``warn`` is called with a line about each feature that the volume lacks.
        """
        self.config = config
        self.reactor = reactor
        self.now = now
        self._warn = warn
        self.threads = Threads(reactor, THREADS)
        self.metrics = metrics = Metrics()
        self.store = Store(config.database_url, reactor, metrics)
        self._removal_threads = Threads(reactor, REMOVAL_THREADS)
        self.volume = Volume(
            config.volume_path, self.threads, volume_number, removal_threads=self._removal_threads
        )
        self.pins = Pins()
        self.access_times = AccessTimes()
        self.tar_indexes = TarIndexCache(
            self.store.carts,
            self.store.statuses,
            self.threads,
            organization=config.organization,
        )
        self._process_locks = ProcessLocks(config.volume_path / "holders")
        file_system = FileSystem(config.volume_path)
        self.recovery = Recovery(
            self.store, self.volume, self.tar_indexes, reactor, now, lambda: file_system.page_cache
        )
        self.stager = Stager(
            self.store,
            self._process_locks,
            self.recovery,
            self.threads,
            reactor,
            now,
            stall_timeout=STALL_TIMEOUT + config.archive_stall_timeout,
            metrics=metrics,
        )
        self._outage_status = OutageStatus(
            self.store.progress, self._process_locks.name, reactor, now
        )
        self._syncing = Syncing(
            self.store.durability,
            self._process_locks.name,
            file_system,
            DedicatedThread(reactor),
            check_volume=self.volume.check,
            revalidate=self.recovery.revalidate,
            clock=reactor,
        )
        self.removal = Removal(self.store, self.volume, self.pins, self.stager.abort, now, reactor)
        self.evicted = LastDay(now)
        rules = SpaceRules(
            quota=config.volume_quota,
            reserve=config.volume_reserve,
            eviction_enabled=config.lru_purge,
            buffer_time=config.lru_buffer_time,
        )
        self.evictor = Evictor(
            self.store,
            self.pins,
            self.access_times,
            rules,
            free_bytes=self.volume.free_space,
            incoming_bytes=self.volume.incoming.size,
            in_use=self.volume.locks.in_use,
            evict=self._evict,
            sweep=self.removal.sweep,
            now=now,
            monotonic=reactor.seconds,
            metrics=metrics,
        )
        self.repair = Repair(
            self.store, self.volume, self.tar_indexes, stage=self.stager.begin, now=now
        )
        self.verification = CartVerifier(self.store, self.volume, metrics)
        self.orphans = Orphans(self.store.carts, self.volume)
        self.downloads = Downloads(
            self.store,
            self.volume,
            self.tar_indexes,
            self.pins,
            self.access_times,
            self.repair,
            reactor,
            now,
        )
        volume_check = VolumeCheck(
            lambda: self.volume.disk_usage(DedicatedThread(reactor)), reactor
        )
        self.health = Health(
            [
                RecoveryCheck(lambda: self.recovery.recovered),
                DatabaseCheck(lambda: self.store.outage),
                ArchiveCheck(lambda: self._outage_status.cause),
                SpaceCheck(lambda: volume_check.usage, config.volume_reserve),
            ],
            volume_check,
            reactor,
            now,
        )
        self.overviews = Overviews(
            self.store,
            self.health,
            quota=config.volume_quota,
            reserve=config.volume_reserve,
            archive_url=config.archive_url,
            downloads=self.pins.count,
            evicted=self.evicted.totals,
        )
        self._concurrency_limit = AdaptiveLimit(config.archive_max_connections, reactor.seconds)
        self.archive_tls = TlsPolicy(
            ca_file=config.archive_ca_file,
            cert_file=config.archive_cert_file,
            key_file=config.archive_key_file,
        )
        client, self._connections = http_client(
            reactor,
            connections=config.archive_max_connections,
            connect_timeout=config.archive_connect_timeout,
            policy=self.archive_tls,
            on_response=self._concurrency_limit.record_response,
        )
        self.archive = ArchiveClient(
            client,
            config.archive_url,
            reactor,
            now=now,
            head_timeout=config.archive_stall_timeout,
            stall_timeout=config.archive_stall_timeout,
            min_rate=config.archive_min_rate,
            metrics=metrics,
        )
        self._semaphore = FairSemaphore(self._concurrency_limit.current, reactor)
        self._breaker = CircuitBreaker(
            self.archive.status,
            self._semaphore,
            ProbeTargets(self.store.carts),
            self._outage_status,
            reactor,
            random.random,
            limit=config.archive_outage_limit,
            url=config.archive_url,
        )
        self.retry_policy = RetryPolicy(
            config.archive_max_attempts,
            self._semaphore,
            self._breaker,
            self._concurrency_limit,
            reactor,
            random.random,
        )
        self.exposition = Exposition(metrics, self.store, self.health, reactor)
        self.exposition.add_gauges(self._set_gauges)
        self.reactor_lag = ReactorLag(metrics, reactor)

    def status_line(self) -> str:
        """Return what the service does and what is wrong, for the service manager."""
        staging, downloads = self.stager.count(), self.pins.count()
        doing = (
            f"{staging} cart{'' if staging == 1 else 's'} staging,"
            f" {downloads} download{'' if downloads == 1 else 's'}"
        )
        reasons = self.health.readiness().reasons
        return "; ".join([doing, *(f"{name}: {reason}" for name, reason in reasons.items())])

    def _set_gauges(self) -> None:
        """Set the gauges of this process."""
        metrics, config = self.metrics, self.config
        for pool, threads in (("disk", self.threads), ("removal", self._removal_threads)):
            metrics.threads_busy.labels(pool).set(threads.busy)
            metrics.threads_limit.labels(pool).set(threads.limit)
            metrics.thread_jobs_waiting.labels(pool).set(threads.waiting)
        metrics.carts_staging.set(self.stager.count())
        metrics.downloads.set(self.pins.count())
        metrics.archive_unavailable.set(self._outage_status.cause is not None)
        metrics.archive_unavailable_seconds.inc(self._outage_status.new_seconds())
        metrics.slots_in_use.set(self._semaphore.held)
        metrics.slots_limit.set(self._concurrency_limit.current())
        metrics.slots_waiting.set(self._semaphore.waiting)
        metrics.store_unavailable.set(self.store.outage is not None)
        metrics.volume_reserve.set(config.volume_reserve)
        metrics.volume_quota.set(inf if config.volume_quota is None else config.volume_quota)

    async def _evict(self, cart: Cart) -> int:
        freed = await self.removal.evict(cart)
        if freed:
            self.evicted.record(freed)
        return freed

    def start(self, *, resume: bool) -> None:
        """Start the threads and the stager; with ``resume``, continue unfinished carts."""
        self.threads.start()
        self._removal_threads.start()
        self._process_locks.start()
        if self._process_locks.no_locks_reason:
            self._warn(
                _WITHOUT_LOCKS.format(self.config.volume_path, self._process_locks.no_locks_reason)
            )
        self._syncing.start()
        context = StagingContext(
            store=self.store,
            volume=self.volume,
            archive=self.archive,
            reserve=self.evictor.reserve,
            tar_indexes=self.tar_indexes,
            breaker=self._breaker,
            concurrency_limit=self._concurrency_limit,
            retry_policy=self.retry_policy,
            poll_limiter=FairRateLimiter(self.config.archive_tape_poll_rate, self.reactor),
            recall_retry_interval=self.config.archive_recall_retry_interval,
            clock=self.reactor,
            now=self.now,
            share_divisor=self.stager.share_divisor,
            metrics=self.metrics,
            also_hash=self.config.also_hash,
        )
        if resume:
            log.info("Using archive {url}", url=self.config.archive_url)
        self.stager.start(context, claim_unfinished=resume)

    async def stop(self) -> None:
        """Stop staging, and sync staged files to the disk unless that takes too long."""
        await self.stager.stop()
        await self._syncing.stop()
        await self._with_timeout(self.threads.run(self._process_locks.stop))

    async def close(self) -> str:
        """Close everything, after staging and sending have ended.

        Return the names of threads that do not end, as the disk hangs, or ''; the process need not
        wait for them.
        """
        try:
            await self._close()
        finally:
            hanging = self.threads.stop()
            hanging = self._removal_threads.stop() or hanging
        return hanging

    async def _close(self) -> None:
        self.reactor_lag.stop()
        self.exposition.stop()
        await self._with_timeout(Deferred.fromCoroutine(self.health.stop()))
        await self._with_timeout(Deferred.fromCoroutine(self.downloads.stop()))
        await self._with_timeout(Deferred.fromCoroutine(self.removal.stop()))
        await self._with_timeout(Deferred.fromCoroutine(self._outage_status.stop()))
        await self._with_timeout(
            Deferred.fromCoroutine(self.evictor.write_access_times()),
            "The last access times are not written",
        )
        await self._with_timeout(
            Deferred.fromCoroutine(self.store.close()), "Pending database operations are aborted"
        )
        await self._with_timeout(self._connections.closeCachedConnections())

    async def _with_timeout(self, work: Deferred[Any], warning: str = "") -> None:
        """Wait for ``work``, but only some seconds; then log ``warning``, if there is one."""
        try:
            await with_timeout(STOP_STEP_TIMEOUT, work, self.reactor)
        except (Unavailable, TimeoutError) as error:
            if warning:
                log.warn("{warning}: {error}", warning=warning, error=error)
