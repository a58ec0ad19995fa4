"""Binding of the volume to its database, recovery after a crash, and the periodic sync.

Binding (:func:`bind_volume`): a random number is written to both when they are new.  If the numbers
differ or one is missing, the disk may not be mounted, or the volume may have another database's
carts: then nothing is created, written or removed.

Crash recovery (:class:`Recovery`): files that may not have reached the disk are verified before
they are sent.  While the service runs, :class:`Syncing` syncs the volume's file system, and records
in the store which files have reached the disk; the rows of the others are dirty.

After the crash of a process alone nothing is verified: its files are in the system's page cache
(:func:`cartd.volume.file_system.page_cache_id`), and the process that takes over syncs them.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from pathlib import Path

from twisted.internet.defer import Deferred, TimeoutError
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from cartd.deferreds.tasks import Periodic
from cartd.deferreds.threads import ThreadRunner
from cartd.errors import ConfigError, NoSpace, Unavailable
from cartd.model import Cart
from cartd.sending.tar_index_cache import TarIndexCache
from cartd.store import Durability, Store, VolumeRecord, volume_record
from cartd.tracing import without_context
from cartd.volume import Volume
from cartd.volume.file_system import FileSystem, SyncFailed, prepare, unusable, write_volume_number
from cartd.volume.identity import holds_carts, read_volume_number
from cartd.volume.paths import VolumePaths

log = Logger()


def _discard(_line: str) -> None:
    """Ignore the line."""


def bind_volume(
    url: str, root: Path, *, force: bool = False, report: Callable[[str], object] = _discard
) -> int | None:
    """Prepare the volume at ``root`` for the database; return its identity number.  Blocks.

    None if the disk is too full to write it: that is retried at the next start.  ``force``: make it
    the volume of this database, whatever it was.  ``report`` is called with each warning about the
    volume.

    :raises ConfigError: it is not the volume of this database, or it cannot be used.
    """
    try:
        with volume_record(url) as record:
            return _bind(record, root, force, report)
    except OSError as error:
        raise unusable(root, error.strerror or str(error)) from None


def _bind(
    record: VolumeRecord, root: Path, force: bool, report: Callable[[str], object]
) -> int | None:
    there = read_volume_number(root)
    if not force:
        _check_match(record, there, root)
    for line in prepare(VolumePaths(root)):
        report(line)
    known = record.number
    number = secrets.randbits(31) if known is None else known
    if there != number:
        try:
            write_volume_number(root, number)
        except NoSpace:
            return None
    if known is None:
        record.write(number)
    return number


def _check_match(record: VolumeRecord, there: int | None, root: Path) -> None:
    known = record.number
    if there == known:
        return
    if known is not None and record.has_carts:
        raise ConfigError(
            f"volume_path: {str(root)!r} is not the volume of this database (is it mounted?);"
            " to use it anyway, run cartd-cmd bind-volume"
        )
    if there is not None and holds_carts(root):
        raise ConfigError(
            f"volume_path: {str(root)!r} has carts of another database (is the database right?);"
            " to use it anyway, run cartd-cmd bind-volume"
        )


TAKEOVER_LEASE = 60.0
"""Seconds of the first lease on dirty rows of dead processes; it is renewed with the others."""
RECOVERY_TIMEOUT = 20.0
"""Seconds for which a request waits for the first recovery."""
SYNC_INTERVAL = 5.0
"""Seconds between two syncs: a crash leaves the files of this time to be verified."""
MAX_REST = 300.0
"""Maximum seconds between two syncs while the disk is slow or fails."""
FINAL_SYNC_TIMEOUT = 20.0
"""Seconds that a stop waits for the disk."""


class Recovery:
    """Restages carts whose files a power failure may have damaged.

    The pipeline verifies their files in place, and fetches damaged ones again.
    """

    def __init__(
        self,
        store: Store,
        volume: Volume,
        tar_indexes: TarIndexCache,
        clock: IReactorTime,
        now: Callable[[], float],
        page_cache: Callable[[], str | None] = lambda: None,
    ) -> None:
        """``page_cache`` returns the id of the system's page cache, None if unknown."""
        self._page_cache = page_cache
        self._store = store
        self._volume = volume
        self._tar_indexes = tar_indexes
        self._clock = clock
        self._now = now
        self._recovered = False
        self._waiting: list[Deferred[None]] = []

    async def recover(self, holder: str, dead: Collection[str]) -> None:
        """Revalidate dirty rows of ``dead`` processes, and of those whose leases have expired."""
        now = self._now()
        left = await self._store.durability.abandoned_dirty_rows(holder, dead=dead, now=now)
        cache = self._page_cache()
        if (left or dead) and cache is not None:
            until = now + TAKEOVER_LEASE
            await self._store.durability.take_over_dirty_rows(
                holder, cache, dead=dead, now=now, until=until
            )
            left = await self._store.durability.abandoned_dirty_rows(holder, dead=dead, now=now)
        await self.revalidate(left)
        self._recovered = True
        waiting, self._waiting = self._waiting, []
        for done in waiting:
            done.callback(None)

    @property
    def recovered(self) -> bool:
        """Whether the first recovery has found the carts that must be verified."""
        return self._recovered

    async def wait_until_recovered(self) -> None:
        """Wait until the first recovery has found the carts that must be verified.

        :raises Unavailable: it takes longer than ``RECOVERY_TIMEOUT``.
        """
        if self._recovered:
            return
        done: Deferred[None] = Deferred(self._waiting.remove)
        self._waiting.append(done)
        done.addTimeout(RECOVERY_TIMEOUT, self._clock)
        try:
            await done
        except TimeoutError:
            raise Unavailable("Crash recovery is in progress; try again later") from None

    async def take_over(self, cart: Cart, holder: str) -> Cart:
        """Take over dirty rows of a cart that ``holder`` has claimed; return the updated cart."""
        dirty = await self._store.durability.dirty_rows_of_others(cart.id, holder)
        cache = self._page_cache()
        if dirty and cache is not None:
            until = self._now() + TAKEOVER_LEASE
            await self._store.durability.take_over_dirty_rows_of_cart(
                cart.id, holder, cache, until=until
            )
            dirty = await self._store.durability.dirty_rows_of_others(cart.id, holder)
        if not dirty:
            return cart
        await self.revalidate(dirty)
        return await self._store.carts.cart(cart.id) or cart

    async def revalidate(self, dirty: Mapping[int, Sequence[int]]) -> None:
        """Restage carts so that the files of these dirty rows, by cart, are verified."""
        for cart_id, rows in dirty.items():
            cart = await self._store.carts.cart(cart_id)
            if cart is None or await self._is_bundled(cart):
                await self._store.durability.record_synced(rows)
                continue
            number = await self._store.durability.revalidate(cart_id, rows, now=self._now())
            self._tar_indexes.invalidate(cart_id)
            log.warn(
                "{cart}: verifying {number} files that may not have reached the disk",
                cart=cart,
                number=number,
            )

    async def _is_bundled(self, cart: Cart) -> bool:
        """Whether its tar exists: it has been synced, and the files are not needed any more."""
        whole = cart.bundle and cart.files_staged == cart.files_total
        return whole and await self._volume.bundles.size(cart) is not None


Revalidate = Callable[[Mapping[int, Sequence[int]]], Awaitable[None]]


class Syncing:
    """Syncs the volume while there are dirty rows, one sync at a time.

    After a failed sync the system treats pages as clean that it could not write, and the next sync
    succeeds.  So ``revalidate`` is called with all dirty rows: their files are hashed, and fetched
    again if damaged.
    """

    def __init__(
        self,
        durability: Durability,
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
        self._durability = durability
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
            await self._durability.forget_page_cache(self._holder)  # it has no dirty pages

    async def _sync_if_due(self) -> None:
        if self._clock.seconds() >= self._next_sync_at:
            await self._sync()

    def _sync(self) -> Deferred[None]:
        """Return a Deferred that fires when the running sync, or else a new one, has ended.

        Cancelling it stops only the wait, not the sync.
        """
        job = self._running
        if job is None:
            job = self._running = without_context(Deferred.fromCoroutine, self._sync_and_record())
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
        dirty = await self._durability.dirty_rows(self._holder)
        if not dirty:
            if not self._page_cache_recorded:
                await self._record_page_cache([])
            return
        await self._check_volume()
        # If this process is killed after the sync has failed, no other process knows of that.
        self._page_cache_recorded = self._file_system.page_cache is None
        if not self._page_cache_recorded:
            await self._durability.forget_page_cache(self._holder)
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
            await self._durability.record_synced(synced, holder=self._holder, cache=cache)
        self._page_cache_recorded = True

    async def _revalidate_unsynced(self) -> None:
        # Of what was dirty since that sync began, some was written to the system before it ended.
        await self._revalidate(await self._durability.dirty_rows(self._holder))
        self._needs_revalidation = False

    def _failed(self, error: SyncFailed) -> None:
        if self._failure_pause == SYNC_INTERVAL:
            log.error(
                "{error}. Check the disk. Files staged since the last sync are verified, and"
                " fetched again if damaged",
                error=error,
            )
        self._failure_pause = min(self._failure_pause * 2, MAX_REST)
        self._next_sync_at = self._clock.seconds() + self._failure_pause
