"""Deletion and eviction of carts: mark in the store, remove the files, later prune the rows."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from twisted.internet.defer import (
    CancelledError,
    Deferred,
    DeferredList,
    DeferredLock,
    FirstError,
    TimeoutError,
    gatherResults,
)
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from cartd.backoff import Backoff
from cartd.carts.download import Pins
from cartd.deferreds.tasks import uncancellable
from cartd.errors import CartdError, NoSpace, Unavailable, VolumeUnavailable
from cartd.model import Cart, CartStatus, Viewer
from cartd.store import Removals, Store
from cartd.tracing import current, without_context
from cartd.volume import Volume
from cartd.volume.remove import RemovalStopped

T = TypeVar("T")

CONCURRENCY = 4
"""Carts that are removed at the same time, each in a thread."""
SMALL_CART_FILES = 1000
"""A client waits for the removal of a cart with at most this many files."""
CLIENT_WAIT = 2.0
"""Seconds that a client waits at most."""
BATCH_PAUSE = 0.2
"""Seconds between two transactions that prune rows, so that others can write."""

log = Logger()


class CannotRemove(CartdError):
    """The file system refuses to remove files of a cart; ``reason`` is its error."""

    def __init__(self, cart: Cart, reason: str) -> None:
        super().__init__(f"{cart} cannot be removed: {reason}")
        self.reason = reason


class Removal:
    """Removes carts for clients, for the evictor and for the commands.

    A cart deleted by a client is marked in the store first: from then on it does not exist for
    clients, and an interrupted removal is finished by the next :meth:`sweep`.  An evicted cart is
    marked after its first file was removed, so that no cart is lost on a file system that refuses
    removals.  Until all files are removed, the cart counts as used space.

    The queue of carts to remove is in the store; in memory are only the removals under way.
    """

    def __init__(
        self,
        store: Store,
        volume: Volume,
        pins: Pins,
        stop_staging: Callable[[int], Awaitable[None]],
        now: Callable[[], float],
        clock: IReactorTime,
    ) -> None:
        """``now`` returns Unix time, for dates in the store; ``clock`` is monotonic."""
        self._store = store
        self._volume = volume
        self._pins = pins
        self._stop_staging = stop_staging
        self._now = now
        self._clock = clock
        self._unpin_waits: set[Deferred[None]] = set()
        """Waiting for the last download of a deleted cart."""
        self._jobs: set[Deferred[int | None]] = set()
        """Removals of deleted carts that are under way, sweeps excluded."""
        self._backlog: Deferred[None] | None = None
        """The removal of carts that had to wait, in the order of their ids."""
        self._backlog_grew = False
        """Whether carts were added since the backlog was read."""
        self._cart_locks: WeakValueDictionary[int, DeferredLock] = WeakValueDictionary()
        """By cart id: a second removal of the same cart waits for the first."""
        self._evicting: set[int] = set()
        self._retry_pauses: Backoff[int] = Backoff(clock.seconds)
        """By id, deleted carts whose files the disk refuses to remove."""
        self._logged_reason: str | None = None
        """The reason that was logged for them last."""

    async def delete(self, cart: Cart) -> int:
        """Delete ``cart``; return the bytes freed so far, without those shared with other carts.

        The files of a large cart are removed later, and those of any cart while several removals
        are under way.  Files that are being downloaded are removed when the last download ends, or,
        if another process sends them, with the first sweep after that.
        """
        await self._store.removals.mark_deleted(cart.id, self._now())
        log.info("{cart} is deleted{by}", cart=cart, by=_by(cart))
        await self._stop_staging(cart.id)
        if not self._pins.is_pinned(cart.id):
            return await self._begin(cart)
        later = Deferred.fromCoroutine(self._remove_when_unpinned(cart))
        self._unpin_waits.add(later)

        def ended(result: T) -> T:
            self._unpin_waits.discard(later)
            return result

        later.addBoth(ended)
        later.addErrback(_log_unless_cancelled)
        return 0

    async def delete_all(self, viewer: Viewer, uid: str) -> int:
        """Delete every cart of ``uid`` that ``viewer`` may see; return their number.

        The newest is deleted last: if the process ends in between, no older cart takes its place.
        """
        carts = await self._store.carts.carts_for(viewer, uid)
        for cart in reversed(carts):
            await self.delete(cart)
        return len(carts)

    async def evict(self, expected: Cart) -> int:
        """Evict a finished cart if it is unchanged (``expected``); return the bytes freed.

        Return 0 if it is being sent, or was used, restaged or deleted meanwhile.

        :raises CannotRemove: the file system refuses.  If it refuses to remove the first file, the
            cart is kept as it is; otherwise it is deleted, and a sweep removes the rest.
        :raises RemovalStopped, VolumeUnavailable: as above; evicting another cart fails, too.
        """
        if self._pins.is_pinned(expected.id):
            return 0
        # Not cancellable: an eviction left marked in the store blocks downloads of the cart until
        # a sweep finishes it.
        if not await uncancellable(Deferred.fromCoroutine(self._begin_eviction(expected))):
            return 0
        return await self._remove_files(expected) or 0

    async def _begin_eviction(self, expected: Cart) -> bool:
        """Remove the first file and mark the cart as deleted; return whether that was done."""
        token = secrets.token_hex(16)
        if not await self._store.removals.begin_eviction(expected, token):
            return False
        return await self._continue_eviction(expected, token)

    async def sweep(self) -> None:
        """Remove leftovers of deleted carts from the volume, and finish interrupted evictions.

        Leftovers remain after a crash or disk errors, or if this process was still staging a cart
        when another process deleted it.  Failed removals are retried after growing pauses.
        """
        await self._volume.check()
        with suppress(RemovalStopped):
            await self._finish_interrupted_evictions()
        leaving = await self._store.removals.pending_removal()
        there = await self._volume.orphans.cart_ids()
        # A cart without a directory may have left its link.
        ids = {*leaving, *await self._store.carts.deleted_among(there)}
        self._retry_pauses.keep(ids)
        await self._remove_all(ids, log_each=True)
        if self._logged_reason is not None and not self._retry_pauses:
            self._logged_reason = None
            log.info("All leftovers of deleted carts have been removed from the volume")

    async def wait_until_idle(self) -> None:
        """Wait until all removals that :meth:`delete` has started are done."""
        while jobs := self._active_jobs():
            ended: Deferred[None] = Deferred()
            _notify_when_done(jobs[0], ended)
            await ended

    async def stop(self) -> None:
        """Cancel all removals; the sweep after the next start finishes them."""
        self._backlog_grew = False
        for later in list(self._unpin_waits):
            later.cancel()
        jobs = self._active_jobs()
        for job in jobs:
            job.cancel()
        await DeferredList(jobs, consumeErrors=True)

    def _active_jobs(self) -> list[Deferred[Any]]:
        return [*self._jobs, *([] if self._backlog is None else [self._backlog])]

    async def _begin(self, cart: Cart) -> int:
        """Start to remove the cart; return the bytes freed within the time that a client waits."""
        if len(self._jobs) >= CONCURRENCY:
            self._start_backlog()
            return 0
        job = Deferred.fromCoroutine(self._remove(cart))
        if not job.called:
            self._jobs.add(job)
        freed: list[int | None] = []

        def ended(result: int | Failure | None) -> int | Failure | None:
            self._jobs.discard(job)
            if not isinstance(result, Failure):
                freed.append(result)
            return result

        job.addBoth(ended)
        job.addErrback(_log_unless_cancelled)
        if not freed and cart.files_total <= SMALL_CART_FILES:
            waiting: Deferred[None] = Deferred()
            _notify_when_done(job, waiting)
            waiting.addTimeout(CLIENT_WAIT, self._clock)
            with suppress(TimeoutError):
                await waiting
        return (freed and freed[0]) or 0

    def _start_backlog(self) -> None:
        """Have all deleted carts removed in the background."""
        self._backlog_grew = True
        if self._backlog is None:
            backlog = without_context(Deferred.fromCoroutine, self._remove_backlog())
            if not backlog.called:
                self._backlog = backlog

            def ended(result: Failure | None) -> Failure | None:
                self._backlog = None
                return result

            backlog.addBoth(ended)
            backlog.addErrback(_log_unless_cancelled)

    async def _remove_backlog(self) -> None:
        try:
            while self._backlog_grew:
                self._backlog_grew = False
                await self._remove_all(await self._store.removals.pending_removal())
        except Unavailable as error:
            log.warn("Deleted carts will be removed later: {error}", error=error)

    async def _remove_all(self, ids: Collection[int], *, log_each: bool = False) -> None:
        """Remove these deleted carts, a few concurrently; with ``log_each``, log each removal."""
        left = iter(sorted(ids))

        async def remove_sequentially() -> None:
            for cart_id in left:
                cart = await self._store.carts.cart(cart_id)
                if (
                    cart is None
                    or self._pins.is_pinned(cart_id)
                    or self._retry_pauses.is_waiting(cart_id)
                ):
                    continue
                if await self._remove(cart) is not None and log_each:
                    log.info(
                        "{cart}: its leftovers have been removed",
                        cart=cart,
                    )

        jobs = [Deferred.fromCoroutine(remove_sequentially()) for _ in range(CONCURRENCY)]
        try:
            await gatherResults(jobs, consumeErrors=True)
        except FirstError as error:
            error.subFailure.raiseException()

    async def _continue_eviction(self, cart: Cart, token: str, *, finish: bool = False) -> bool:
        """As :meth:`_begin_eviction`, for an eviction that is marked in the store."""
        self._evicting.add(cart.id)
        try:
            if not await self._remove_first_file(cart, token, finish):
                return False
            log.info(
                "{cart} is evicted, {size} bytes",
                cart=cart,
                size=cart.volume_bytes - cart.bytes_linked,
            )
            await self._store.removals.mark_deleted(cart.id, self._now())
            return True
        finally:
            self._evicting.discard(cart.id)

    async def _remove_first_file(self, cart: Cart, token: str, finish: bool) -> bool:
        """Remove one file of the cart; if that is not possible, end the eviction.

        Return whether a file was removed.  A download that began after the eviction was marked in
        the store waits for its end, so ``finish``, for an eviction that another process began and
        that may have removed files, ignores pins.  A download that is reading holds a lock.
        """
        try:
            may_go = finish or not self._pins.is_pinned(cart.id)
            if may_go and await self._volume.removal.remove_one_file(cart):
                return True
        except (OSError, NoSpace) as error:
            await self._store.removals.end_eviction(cart.id, token)
            raise CannotRemove(cart, _reason_of(error)) from error
        except (RemovalStopped, VolumeUnavailable):
            await self._store.removals.end_eviction(cart.id, token)
            raise
        await self._store.removals.end_eviction(cart.id, token)
        return False

    async def _finish_interrupted_evictions(self) -> None:
        """Finish evictions whose process has died, or has lost its database connection.

        If it is still alive, both processes do the same, which is harmless.
        """
        for cart_id, token in (await self._store.removals.evicting()).items():
            cart = await self._store.carts.cart(cart_id)
            # It may have been aborted while another eviction was finished.
            if cart is None or cart.evicting != token or cart_id in self._evicting:
                continue
            try:
                if await uncancellable(
                    Deferred.fromCoroutine(self._continue_eviction(cart, token, finish=True))
                ):
                    await self._remove_files(cart)
            except CannotRemove as error:
                log.error("{error}; it is not evicted", error=error)

    async def _remove_when_unpinned(self, cart: Cart) -> None:
        await self._pins.when_unpinned(cart.id)
        await self._remove(cart)

    async def _remove(self, cart: Cart) -> int | None:
        """Remove the cart; return the bytes freed, or ``None`` if the cart is still there."""
        try:
            return await self._remove_files(cart)
        except (RemovalStopped, VolumeUnavailable):
            pass  # a sweep removes it after the next start, or once the volume is back
        except CannotRemove as error:
            if error.reason != self._logged_reason:
                self._logged_reason = error.reason
                log.error(
                    "{error}; it is retried, and further failures are not logged", error=error
                )
        except Unavailable as error:
            log.warn(
                "{cart} will be removed later: {error}",
                cart=cart,
                error=error,
            )
        return None

    async def _remove_files(self, cart: Cart) -> int | None:
        """As :meth:`_remove`.

        :raises CannotRemove: the file system refuses.
        :raises RemovalStopped, VolumeUnavailable: a later sweep removes the rest.
        """
        lock = self._cart_locks.setdefault(cart.id, DeferredLock())
        await lock.acquire()
        try:
            await self._repoint_link(cart)
            if not await self._volume.removal.remove(cart):
                log.debug(
                    "{cart} is in use and will be removed later",
                    cart=cart,
                )
                return None
            freed = await self._store.removals.record_removed(cart.id, self._now())
        except (OSError, NoSpace) as error:
            self._retry_pauses.failed(cart.id)
            raise CannotRemove(cart, _reason_of(error)) from error
        finally:
            lock.release()
        self._retry_pauses.succeeded(cart.id)
        return freed

    async def _repoint_link(self, cart: Cart) -> None:
        """Point the link of the uid at the older cart that takes its place, if there is one."""
        older = await self._store.carts.newest(cart.uid)
        if older is None or older.id > cart.id or older.status != CartStatus.READY:
            return
        await self._volume.links.place(older)
        newest = await self._store.carts.newest(cart.uid)
        if newest is None or newest.id != older.id:
            # It was deleted meanwhile, perhaps even removed before the link was made.
            await self._volume.links.remove(older)


def _reason_of(error: OSError | NoSpace) -> str:
    """Return the system's error; the message of ``NoSpace`` is for a cart being staged."""
    cause = error.__cause__ if isinstance(error, NoSpace) else error
    return str(getattr(cause, "strerror", None) or cause)


def _notify_when_done(job: Deferred[Any], ended: Deferred[None]) -> None:
    """Fire ``ended`` when ``job`` has ended; cancelling ``ended`` does not affect ``job``."""

    def notify(result: T) -> T:
        if not ended.called:
            ended.callback(None)
        return result

    job.addBoth(notify)


def _by(cart: Cart) -> str:
    """Return who deletes the cart, if that is not its owner."""
    context = current.get()
    user = None if context is None else context.user
    return "" if user is None or user == cart.owner else f" by {user}"


def _log_unless_cancelled(failure: Failure) -> None:
    """Errback of jobs whose result is not awaited."""
    if not failure.check(CancelledError):
        log.failure("A deleted cart will be removed later", failure)


class Retention:
    """Deletes expired rows of removed carts, in batches."""

    def __init__(
        self, removals: Removals, max_age: float, clock: IReactorTime, now: Callable[[], float]
    ) -> None:
        """``max_age``: seconds for which a cart's rows are kept after its removal."""
        self._removals = removals
        self._max_age = max_age
        self._clock = clock
        self._now = now

    async def delete_expired(self) -> None:
        """Delete all expired rows; if cancelled, the next call continues."""
        before = self._now() - self._max_age
        while await self._removals.prune_removed(before):
            await deferLater(self._clock, BATCH_PAUSE)
