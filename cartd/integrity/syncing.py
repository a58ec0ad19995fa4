"""Telling the store what the disk has: of all that is staged, not file by file."""

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
"""Seconds between two syncs: what a crash leaves to be verified is no more than that."""
MAX_REST = 300.0
"""Seconds between two syncs, at the most, while the disk is slow or fails."""
FINAL_SYNC_TIMEOUT = 20.0
"""Seconds that a stop waits for the disk."""

log = Logger()
Revalidate = Callable[[Mapping[int, Sequence[int]]], Awaitable[None]]


class Syncing:
    """Syncs the volume while there is something to sync, one sync at a time.

    After a sync that failed the system takes for written what it could not write, and the next one
    would succeed.  So what was to be synced is given to ``revalidate``: it is hashed, and staged
    again.
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
        """``check_volume`` raises :class:`~cartd.errors.VolumeUnavailable`: then nothing is
        synced."""
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
        """Whether a sync has failed, and the store could not be told of what it was to write."""
        self._page_cache_recorded = False
        """Whether the store knows which memory has what this process writes, or nobody can."""
        self._next_sync_at = 0.0
        self._failure_pause = SYNC_INTERVAL

    def start(self) -> None:
        """Begin, when the volume can be used; blocks for no more than opening a directory."""
        self._file_system.open()
        self._loop.start()

    async def stop(self) -> None:
        """Sync once more, if the disk does not take too long; else the next start verifies."""
        await self._loop.stop()
        last = Deferred.fromCoroutine(self._final_sync())
        last.addTimeout(FINAL_SYNC_TIMEOUT, self._clock)
        try:
            await last
        except TimeoutError:
            log.warn(
                "The disk has not written in {seconds} s: what was staged last is verified at the"
                " next start",
                seconds=FINAL_SYNC_TIMEOUT,
            )
        except Unavailable as error:
            log.warn("What was staged last is verified at the next start: {error}", error=error)
        if self._running is not None:
            self._running.cancel()
        self._file_system.close()

    async def _final_sync(self) -> None:
        if self._running is not None:
            await self._sync()
        await self._sync()
        if self._page_cache_recorded and self._file_system.page_cache is not None:
            await self._store.forget_page_cache(self._holder)  # nothing of it is left

    async def _sync_if_due(self) -> None:
        if self._clock.seconds() >= self._next_sync_at:
            await self._sync()

    def _sync(self) -> Deferred[None]:
        """Fires when the sync is over that is under way, or else begins now.

        Cancelling gives up the waiting alone: what a sync tells is told only once.
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
        # Should this process be killed by the time that the sync has failed, nobody else knows it.
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
        # Who else uses a slow disk shall have as much of it.
        ended = self._clock.seconds()
        self._next_sync_at = ended + min(ended - begun, MAX_REST)
        await self._record_page_cache([row for rows in dirty.values() for row in rows])

    async def _record_page_cache(self, synced: Sequence[int]) -> None:
        """Record what is ``synced``, and which memory has whatever is written from now on."""
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
                "{error}. Please look after the disk. What was staged since the last sync is"
                " verified, and fetched again if it is wrong",
                error=error,
            )
        self._failure_pause = min(self._failure_pause * 2, MAX_REST)
        self._next_sync_at = self._clock.seconds() + self._failure_pause
