"""The end of a cart: marked in the store, taken out of staging, removed from the volume."""

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
from twisted.logger import Logger
from twisted.python.failure import Failure

from cartd.backoff import Backoff
from cartd.errors import CartdError, NoSpace, Unavailable, VolumeUnavailable
from cartd.model import Cart, CartStatus, Viewer
from cartd.pins import Pins
from cartd.store import Store
from cartd.uncancellable import uncancellable
from cartd.volume import Volume
from cartd.volume.remove import RemovalStopped

T = TypeVar("T")
CONCURRENCY = 4
"""Carts that are removed at the same time: each has a thread."""
SMALL_CART_FILES = 1000
"""Files of a cart for whose removal a client waits."""
CLIENT_WAIT = 2.0
"""Seconds for which it waits at most."""

log = Logger()


class CannotRemove(CartdError):
    """The file system refuses to remove files of a cart; ``reason`` is what it says."""

    def __init__(self, cart: Cart, reason: str) -> None:
        super().__init__(f"Cart {cart.id} ({cart.display_uid}) cannot be removed: {reason}")
        self.reason = reason


class Removal:
    """Removes carts for whoever asks: a client, the evictor or an admin.

    What a client deletes is marked in the store first: from then on nobody finds it, and a removal
    that is cut short is finished by the next :meth:`sweep`.  What is evicted is marked when its
    first file has gone: on a file system that refuses to remove files nothing is lost.  Until all
    files have gone, a cart counts for the room.

    What is to be removed is known to the store alone; here are no more than are being removed.
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
        """``now`` gives Unix time, for the dates in the store; ``clock`` is a steady one."""
        self._store = store
        self._volume = volume
        self._pins = pins
        self._stop_staging = stop_staging
        self._now = now
        self._clock = clock
        self._unpin_waits: set[Deferred[None]] = set()
        """For the last download of a deleted cart."""
        self._jobs: set[Deferred[int | None]] = set()
        """Deleted carts that are being removed, apart from sweeps."""
        self._backlog: Deferred[None] | None = None
        """The removal of those that had to wait, in the order of their ids."""
        self._backlog_grew = False
        """Whether more has come since it began."""
        self._cart_locks: WeakValueDictionary[int, DeferredLock] = WeakValueDictionary()
        """By cart id: who comes to remove one that is being removed waits until it has gone."""
        self._evicting: set[int] = set()
        self._retry_pauses: Backoff[int] = Backoff(clock.seconds)
        """Deleted carts whose files the disk will not let go of, by their ids."""
        self._logged_reason: str | None = None
        """What the log has said of them."""

    async def delete(self, cart: Cart) -> int:
        """Delete ``cart`` and give the bytes that are free now: what it shares with others is not.

        The files of a large cart go later; so do those of any cart while several are being removed.
        Files that are being downloaded go when the last download of them ends; if that is another
        process's, with the first sweep after it.
        """
        await self._store.mark_deleted(cart.id, self._now())
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
        """Delete every cart of ``uid`` that ``viewer`` sees, and give their number.

        The newest goes last: if the process ends in between, none that is older answers in its
        place.
        """
        carts = await self._store.carts_for(viewer, uid)
        for cart in reversed(carts):
            await self.delete(cart)
        return len(carts)

    async def evict(self, expected: Cart) -> int:
        """Evict a finished cart if it is still as it was ``expected``; the bytes that are free now.

        None are if it is being sent, or has been used, staged again or deleted meanwhile.

        :raises CannotRemove: the file system refuses.  If it refuses the first file, the cart
            stays as it is, ready above all; else it is deleted, and the rest goes with a sweep.
        :raises RemovalStopped, VolumeUnavailable: so it is with these; no other cart makes room
        either.
        """
        if self._pins.is_pinned(expected.id):
            return 0
        # To its end, whoever gives up: a note that is left keeps clients from the cart until a
        # sweep has finished what it says.
        if not await uncancellable(Deferred.fromCoroutine(self._begin_eviction(expected))):
            return 0
        return await self._remove_files(expected) or 0

    async def _begin_eviction(self, expected: Cart) -> bool:
        """Whether its first file has gone, and it is marked as deleted."""
        token = secrets.token_hex(16)
        if not await self._store.begin_eviction(expected, token):
            return False
        return await self._continue_eviction(expected, token)

    async def sweep(self) -> None:
        """Remove what deleted carts have left on the volume, and finish evictions.

        That is what a crash or a failing disk kept from being removed, and what this process went
        on staging when another one deleted the cart.  A cart that cannot be removed is tried again
        after growing pauses.
        """
        await self._volume.check()
        with suppress(RemovalStopped):
            await self._finish_interrupted_evictions()
        leaving = await self._store.pending_removal()
        there = await self._volume.cart_ids()
        # One that has no directory may have left its link.
        ids = {*leaving, *await self._store.deleted_among(there)}
        self._retry_pauses.keep(ids)
        await self._remove_all(ids, log_each=True)
        if self._logged_reason is not None and not self._retry_pauses:
            self._logged_reason = None
            log.info("All that deleted carts had left on the volume has been removed")

    async def wait_until_idle(self) -> None:
        """Wait until nothing is being removed that :meth:`delete` has begun."""
        while jobs := self._active_jobs():
            ended: Deferred[None] = Deferred()
            _notify_when_done(jobs[0], ended)
            await ended

    async def stop(self) -> None:
        """Leave the rest to the next start's sweep."""
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
        """Have the cart removed; the bytes that are free by the time that a client may wait."""
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
        """Have all removed that can be, soon."""
        self._backlog_grew = True
        if self._backlog is None:
            backlog = Deferred.fromCoroutine(self._remove_backlog())
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
                await self._remove_all(await self._store.pending_removal())
        except Unavailable as error:
            log.warn("Deleted carts are removed later: {error}", error=error)

    async def _remove_all(self, ids: Collection[int], *, log_each: bool = False) -> None:
        """Remove those deleted carts that can be, some at once; ``log_each``: in the log."""
        left = iter(sorted(ids))

        async def remove_sequentially() -> None:
            for cart_id in left:
                cart = await self._store.cart(cart_id)
                if (
                    cart is None
                    or self._pins.is_pinned(cart_id)
                    or self._retry_pauses.is_waiting(cart_id)
                ):
                    continue
                if await self._remove(cart) is not None and log_each:
                    log.info(
                        "Removed what was left of deleted cart {id} ({uid})",
                        id=cart.id,
                        uid=cart.display_uid,
                    )

        jobs = [Deferred.fromCoroutine(remove_sequentially()) for _ in range(CONCURRENCY)]
        try:
            await gatherResults(jobs, consumeErrors=True)
        except FirstError as error:
            error.subFailure.raiseException()

    async def _continue_eviction(self, cart: Cart, token: str, *, finish: bool = False) -> bool:
        """As :meth:`_begin_eviction`, of one that has been noted in the store."""
        self._evicting.add(cart.id)
        try:
            if not await self._remove_first_file(cart, token, finish):
                return False
            log.info(
                "Evicting cart {id} ({uid}), {size} bytes",
                id=cart.id,
                uid=cart.display_uid,
                size=cart.volume_bytes - cart.bytes_linked,
            )
            await self._store.mark_deleted(cart.id, self._now())
            return True
        finally:
            self._evicting.discard(cart.id)

    async def _remove_first_file(self, cart: Cart, token: str, finish: bool) -> bool:
        """Whether a file of the cart has gone; if not, it is not being evicted any more.

        A download that is not expected here sees the note, and waits for what comes of it.  So who
        comes to ``finish`` what others have begun sees only such downloads, as files of the cart
        may be missing; one that reads has a lock.
        """
        try:
            may_go = finish or not self._pins.is_pinned(cart.id)
            if may_go and await self._volume.remove_one_file(cart):
                return True
        except (OSError, NoSpace) as error:
            await self._store.end_eviction(cart.id, token)
            raise CannotRemove(cart, _reason_of(error)) from error
        except (RemovalStopped, VolumeUnavailable):
            await self._store.end_eviction(cart.id, token)
            raise
        await self._store.end_eviction(cart.id, token)
        return False

    async def _finish_interrupted_evictions(self) -> None:
        """Go on with evictions that nobody goes on with: their process has died, or lost the store.

        Should it be alive after all, both do the same.
        """
        for cart_id, token in (await self._store.evicting()).items():
            cart = await self._store.cart(cart_id)
            # It may have been given up while another one was finished.
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
        """The bytes that are free now; none if the cart is still there."""
        try:
            return await self._remove_files(cart)
        except (RemovalStopped, VolumeUnavailable):
            pass  # the sweep removes it at the next start, or once the volume is back
        except CannotRemove as error:
            if error.reason != self._logged_reason:
                self._logged_reason = error.reason
                log.error("{error}; it is tried again, and so are others", error=error)
        except Unavailable as error:
            log.warn(
                "Cart {id} ({uid}) is removed later: {error}",
                id=cart.id,
                uid=cart.display_uid,
                error=error,
            )
        return None

    async def _remove_files(self, cart: Cart) -> int | None:
        """As :meth:`_remove`.

        :raises CannotRemove: the file system refuses.
        :raises RemovalStopped, VolumeUnavailable: the rest goes another time.
        """
        lock = self._cart_locks.setdefault(cart.id, DeferredLock())
        await lock.acquire()
        try:
            await self._repoint_link(cart)
            if not await self._volume.remove(cart):
                log.debug(
                    "Cart {id} ({uid}) goes later: it is in use", id=cart.id, uid=cart.display_uid
                )
                return None
            freed = await self._store.record_removed(cart.id, self._now())
        except (OSError, NoSpace) as error:
            self._retry_pauses.failed(cart.id)
            raise CannotRemove(cart, _reason_of(error)) from error
        finally:
            lock.release()
        self._retry_pauses.succeeded(cart.id)
        return freed

    async def _repoint_link(self, cart: Cart) -> None:
        """Point the link of the uid at the older cart that answers now, if there is one."""
        older = await self._store.newest(cart.uid)
        if older is None or older.id > cart.id or older.status != CartStatus.READY:
            return
        await self._volume.link(older)
        newest = await self._store.newest(cart.uid)
        if newest is None or newest.id != older.id:
            # It was deleted meanwhile, perhaps removed before the link was there.
            await self._volume.unlink(older)


def _reason_of(error: OSError | NoSpace) -> str:
    """What the system says; ``NoSpace`` would be said of a cart that finds no room."""
    cause = error.__cause__ if isinstance(error, NoSpace) else error
    return str(getattr(cause, "strerror", None) or cause)


def _notify_when_done(job: Deferred[Any], ended: Deferred[None]) -> None:
    """Fire ``ended`` when ``job`` has ended; who gives up waiting does not disturb it."""

    def tell(result: T) -> T:
        if not ended.called:
            ended.callback(None)
        return result

    job.addBoth(tell)


def _log_unless_cancelled(failure: Failure) -> None:
    """For what nobody waits for."""
    if not failure.check(CancelledError):
        log.failure("A deleted cart is removed later", failure)
