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
from cartd.threads import RunsInThread
from cartd.volume.file_system import FileSystem, SyncFailed

SYNC_EVERY = 5.0
"""Seconds between two syncs: what a crash leaves to be verified is no more than that."""
LONGEST_REST = 300.0
"""Seconds between two syncs, at the most, while the disk is slow or fails."""
LAST_SYNC = 20.0
"""Seconds that a stop waits for the disk."""

log = Logger()
Doubts = Callable[[Mapping[int, Sequence[int]]], Awaitable[None]]


class Syncing:
    """Syncs the volume while there is something to sync, one sync at a time.

    After a sync that failed the system takes for written what it could not write, and the next one
    would succeed.  So what was to be synced is given to ``doubt``: it is hashed, and staged again.
    """

    def __init__(
        self,
        store: Store,
        holder: str,
        file_system: FileSystem,
        threads: RunsInThread,
        *,
        check_volume: Callable[[], Awaitable[None]],
        doubt: Doubts,
        clock: IReactorTime,
    ) -> None:
        """``check_volume`` raises :class:`~cartd.errors.VolumeUnavailable`: then nothing is
        synced."""
        self._check_volume = check_volume
        self._store = store
        self._holder = holder
        self._file_system = file_system
        self._threads = threads
        self._doubt = doubt
        self._clock = clock
        self._loop = Periodic(clock, SYNC_EVERY, self._when_rested)
        self._running: Deferred[None] | None = None
        self._doubtful = False
        """Whether a sync has failed, and the store could not be told of what it was to write."""
        self._is_known = False
        """Whether the store knows which memory has what this process writes, or nobody can."""
        self._rests_until = 0.0
        self._rest = SYNC_EVERY

    def start(self) -> None:
        """Begin, when the volume can be used; blocks for no more than opening a directory."""
        self._file_system.open()
        self._loop.start()

    async def stop(self) -> None:
        """Sync once more, if the disk does not take too long; else the next start verifies."""
        await self._loop.stop()
        last = Deferred.fromCoroutine(self._last())
        last.addTimeout(LAST_SYNC, self._clock)
        try:
            await last
        except TimeoutError:
            log.warn(
                "The disk has not written in {seconds} s: what was staged last is verified at the"
                " next start",
                seconds=LAST_SYNC,
            )
        except Unavailable as error:
            log.warn("What was staged last is verified at the next start: {error}", error=error)
        if self._running is not None:
            self._running.cancel()
        self._file_system.close()

    async def _last(self) -> None:
        if self._running is not None:
            await self._sync()
        await self._sync()
        if self._is_known and self._file_system.page_cache is not None:
            await self._store.forget_page_cache(self._holder)  # nothing of it is left

    async def _when_rested(self) -> None:
        if self._clock.seconds() >= self._rests_until:
            await self._sync()

    def _sync(self) -> Deferred[None]:
        """Fires when the sync is over that is under way, or else begins now.

        Cancelling gives up the waiting alone: what a sync tells is told only once.
        """
        job = self._running
        if job is None:
            job = self._running = Deferred.fromCoroutine(self._sync_and_record())
            job.addBoth(self._ended)
        told: Deferred[None] = Deferred()
        job.addBoth(told.callback)
        return told

    def _ended(self, result: Failure | None) -> Failure | None:
        self._running = None
        return result

    async def _sync_and_record(self) -> None:
        if self._doubtful:
            await self._doubt_them()
        noted = await self._store.unsynced(self._holder)
        if not noted:
            if not self._is_known:
                await self._tell_memory([])
            return
        await self._check_volume()
        # Should this process be killed by the time that the sync has failed, nobody else knows it.
        self._is_known = self._file_system.page_cache is None
        if not self._is_known:
            await self._store.forget_page_cache(self._holder)
        begun = self._clock.seconds()
        try:
            await self._threads.run(self._file_system.sync)
        except SyncFailed as error:
            self._doubtful = True
            self._is_known = False
            self._failed(error)
            await self._doubt_them()
            return
        self._rest = SYNC_EVERY
        # Who else uses a slow disk shall have as much of it.
        ended = self._clock.seconds()
        self._rests_until = ended + min(ended - begun, LONGEST_REST)
        await self._tell_memory([row for rows in noted.values() for row in rows])

    async def _tell_memory(self, synced: Sequence[int]) -> None:
        """Record what is ``synced``, and which memory has whatever is written from now on."""
        cache = self._file_system.page_cache
        if synced or cache is not None:
            await self._store.record_synced(synced, holder=self._holder, cache=cache)
        self._is_known = True

    async def _doubt_them(self) -> None:
        # Of what was noted since that sync began, some was written to the system before it ended.
        await self._doubt(await self._store.unsynced(self._holder))
        self._doubtful = False

    def _failed(self, error: SyncFailed) -> None:
        if self._rest == SYNC_EVERY:
            log.error(
                "{error}. Please look after the disk. What was staged since the last sync is"
                " verified, and fetched again if it is wrong",
                error=error,
            )
        self._rest = min(self._rest * 2, LONGEST_REST)
        self._rests_until = self._clock.seconds() + self._rest
