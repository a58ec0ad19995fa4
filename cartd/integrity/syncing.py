"""Syncs the volume's file system, and records in the store which files have reached the disk."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence

from twisted.internet.defer import Deferred, TimeoutError
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from cartd.errors import Unavailable
from cartd.periodic import Periodic
from cartd.store import Store
from cartd.threads import ThreadRunner
from cartd.volume.file_system import FileSystem, SyncFailed

SYNC_INTERVAL = 5.0
"""Seconds between two syncs: a crash leaves the files of this time to be verified."""
MAX_REST = 300.0
"""Maximum seconds between two syncs while the disk is slow or fails."""
FINAL_SYNC_TIMEOUT = 20.0
"""Seconds that a stop waits for the disk."""

log = Logger()
Revalidate = Callable[[Mapping[int, Sequence[int]]], Awaitable[None]]


class Syncing:
    """Syncs the volume while there are dirty rows, one sync at a time.

    After a failed sync the system treats pages as clean that it could not write, and the next sync
    succeeds.  So ``revalidate`` is called with all dirty rows: their files are hashed, and fetched
    again if damaged.
    """

    def __init__(
        self,
        store: Store,
        holder: str,
        file_system: FileSystem,
        threads: ThreadRunner,
        *,
        check_volume: Callable[[], Awaitable[None]],
        revalidate: Revalidate,
        clock: IReactorTime,
    ) -> None:
        """Nothing is synced if ``check_volume`` raises :class:`~cartd.errors.VolumeUnavailable`."""
        self._check_volume = check_volume
        self._store = store
        self._holder = holder
        self._file_system = file_system
        self._threads = threads
        self._revalidate = revalidate
        self._clock = clock
        self._loop = Periodic(clock, SYNC_INTERVAL, self._sync_if_due)
        self._running: Deferred[None] | None = None
        self._needs_revalidation = False
        """Whether a sync has failed, and the revalidation of its rows is not recorded yet."""
        self._page_cache_recorded = False
        """Whether the store has the id of the page cache of this process, if it has one."""
        self._next_sync_at = 0.0
        self._failure_pause = SYNC_INTERVAL

    def start(self) -> None:
        """Start; the volume must be available.  Blocks only to open a directory."""
        self._file_system.open()
        self._loop.start()

    async def stop(self) -> None:
        """Sync a last time; if that takes too long, the next start verifies the files."""
        await self._loop.stop()
        last = Deferred.fromCoroutine(self._final_sync())
        last.addTimeout(FINAL_SYNC_TIMEOUT, self._clock)
        try:
            await last
        except TimeoutError:
            log.warn(
                "The last sync has not ended in {seconds} s: the files staged last are verified at"
                " the next start",
                seconds=FINAL_SYNC_TIMEOUT,
            )
        except Unavailable as error:
            log.warn("The files staged last are verified at the next start: {error}", error=error)
        if self._running is not None:
            self._running.cancel()
        self._file_system.close()

    async def _final_sync(self) -> None:
        if self._running is not None:
            await self._sync()
        await self._sync()
        if self._page_cache_recorded and self._file_system.page_cache is not None:
            await self._store.forget_page_cache(self._holder)  # it has no dirty pages

    async def _sync_if_due(self) -> None:
        if self._clock.seconds() >= self._next_sync_at:
            await self._sync()

    def _sync(self) -> Deferred[None]:
        """Return a Deferred that fires when the running sync, or else a new one, has ended.

        Cancelling it stops only the wait, not the sync.
        """
        job = self._running
        if job is None:
            job = self._running = Deferred.fromCoroutine(self._sync_and_record())
            job.addBoth(self._ended)
        done: Deferred[None] = Deferred()
        job.addBoth(done.callback)
        return done

    def _ended(self, result: Failure | None) -> Failure | None:
        self._running = None
        return result

    async def _sync_and_record(self) -> None:
        if self._needs_revalidation:
            await self._revalidate_unsynced()
        dirty = await self._store.dirty_rows(self._holder)
        if not dirty:
            if not self._page_cache_recorded:
                await self._record_page_cache([])
            return
        await self._check_volume()
        # If this process is killed after the sync has failed, no other process knows of that.
        self._page_cache_recorded = self._file_system.page_cache is None
        if not self._page_cache_recorded:
            await self._store.forget_page_cache(self._holder)
        begun = self._clock.seconds()
        try:
            await self._threads.run(self._file_system.sync)
        except SyncFailed as error:
            self._needs_revalidation = True
            self._page_cache_recorded = False
            self._failed(error)
            await self._revalidate_unsynced()
            return
        self._failure_pause = SYNC_INTERVAL
        # Leave a slow disk to others for as long as the sync took.
        ended = self._clock.seconds()
        self._next_sync_at = ended + min(ended - begun, MAX_REST)
        await self._record_page_cache([row for rows in dirty.values() for row in rows])

    async def _record_page_cache(self, synced: Sequence[int]) -> None:
        """Record ``synced`` rows, and the id of the page cache for later writes."""
        cache = self._file_system.page_cache
        if synced or cache is not None:
            await self._store.record_synced(synced, holder=self._holder, cache=cache)
        self._page_cache_recorded = True

    async def _revalidate_unsynced(self) -> None:
        # Of what was dirty since that sync began, some was written to the system before it ended.
        await self._revalidate(await self._store.dirty_rows(self._holder))
        self._needs_revalidation = False

    def _failed(self, error: SyncFailed) -> None:
        if self._failure_pause == SYNC_INTERVAL:
            log.error(
                "{error}. Check the disk. Files staged since the last sync are verified, and"
                " fetched"
                " again if damaged",
                error=error,
            )
        self._failure_pause = min(self._failure_pause * 2, MAX_REST)
        self._next_sync_at = self._clock.seconds() + self._failure_pause
