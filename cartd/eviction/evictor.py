"""Reserves space on the volume for carts in staging, and evicts old carts to free it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from twisted.internet.defer import DeferredLock
from twisted.logger import Logger

from cartd.backoff import Backoff
from cartd.carts.delete import CannotRemove
from cartd.carts.download import AccessTimes, Pins
from cartd.errors import EvictionFailed, NoSpace
from cartd.eviction.policy import choose, freed, shortfall
from cartd.metrics import UNEXPOSED, Metrics
from cartd.model import UNFINISHED, Cart, CartStatus, EvictionCandidate, Fit
from cartd.store import Store
from cartd.volume.remove import RemovalStopped

log = Logger()


@dataclass(frozen=True, slots=True)
class SpaceRules:
    """Limits that the site sets; sizes in bytes, times in seconds."""

    quota: int | None
    reserve: int
    eviction_enabled: bool
    buffer_time: float


class Evictor:
    """Reserves space for carts, evicting the least recently used carts where necessary.

    ``free_bytes`` returns the disk's free bytes, ``incoming_bytes`` those of files being written.
    ``in_use`` returns which of the given carts any process is sending.  ``evict`` is
    :meth:`cartd.carts.delete.Removal.evict` and returns the bytes that it freed; ``sweep`` removes
    the leftovers of deleted carts.  ``now`` returns Unix time, ``monotonic`` is a monotonic clock.

    A cart that cannot be removed is kept, and is not retried for a while.  If a second cart
    cannot be removed, the file system is considered faulty, and the eviction ends.
    """

    def __init__(
        self,
        store: Store,
        pins: Pins,
        access_times: AccessTimes,
        rules: SpaceRules,
        *,
        free_bytes: Callable[[], Awaitable[int]],
        incoming_bytes: Callable[[], Awaitable[int]],
        in_use: Callable[[Collection[int]], Awaitable[set[int]]],
        evict: Callable[[Cart], Awaitable[int]],
        sweep: Callable[[], Awaitable[None]],
        now: Callable[[], float],
        monotonic: Callable[[], float],
        metrics: Metrics = UNEXPOSED,
    ) -> None:
        self._store = store
        self._pins = pins
        self._access_times = access_times
        self._rules = rules
        self._free_bytes = free_bytes
        self._incoming_bytes = incoming_bytes
        self._in_use = in_use
        self._evict = evict
        self._sweep = sweep
        self._now = now
        self._metrics = metrics
        self._eviction_lock = DeferredLock()
        """Held while carts are evicted for a reservation.  Other reservations that need an eviction
        wait in order; those that fit do not wait."""
        self._reservation_lock = DeferredLock()
        """Held while space is reserved without an eviction."""
        self._earmarked = 0
        """Free bytes that the reservation in eviction needs beside what the eviction frees; later
        reservations may not take them."""
        self._unremovable: Backoff[int] = Backoff(monotonic)
        """By id, carts that could not be removed."""
        self._removal_blocked: Backoff[None] = Backoff(monotonic)
        """Backoff for all removals; non-empty while removal fails for every cart."""
        self._reason = ""
        """The system's last error for a cart that could not be removed."""

    async def reserve(
        self, cart: Cart, holder: str, *, bytes_total: int, volume_bytes: int
    ) -> None:
        """Reserve ``volume_bytes`` for ``cart``, evicting other carts if that frees enough.

        Bytes of the cart that are on the volume already, fetched or linked, need no new space; nor
        do bytes that were reserved before a stop, even if space is short by now.

        :raises NoSpace: there is not enough space, even after all possible evictions.
        :raises EvictionFailed: there would be, but the carts to evict cannot be removed.
        """

        async def promised(most: int | None) -> bool:
            return await self._store.progress.reserve(
                cart.id, holder, bytes_total=bytes_total, volume_bytes=volume_bytes, limit=most
            )

        def lacking() -> int:
            return volume_bytes - cart.volume_bytes if volume_bytes > cart.bytes_staged else 0

        if await self._reserve_without_eviction(lacking(), promised):
            return
        await self._eviction_lock.acquire()
        try:
            while True:
                cart = await self._store.carts.cart(cart.id) or cart
                more = lacking()
                most = await self._free_space_for(cart, more) if more > 0 else None
                if await promised(most):
                    return
                # Other processes may have reserved the space meanwhile, or staged more of the cart.
        finally:
            self._earmarked = 0
            self._eviction_lock.release()

    async def fit(self, wanted: int) -> Fit:
        """Return whether ``wanted`` bytes could be reserved now; reserve and evict nothing."""
        _, missing = await self._shortfall_now(wanted + self._earmarked)
        if wanted <= 0 or missing <= 0:
            return Fit.NOW
        if self._removal_blocked.is_waiting(None):
            return Fit.NO
        _, frees = await self._choose_candidates(missing)
        return Fit.AFTER_EVICTION if frees >= missing else Fit.NO

    async def enforce_limits(self) -> None:
        """Write the access times, then evict until quota and reserve hold again."""
        await self.write_access_times()
        await self._eviction_lock.acquire()
        try:
            _, missing = await self._shortfall(0)
            with suppress(EvictionFailed, RemovalStopped):  # logged already, or no error
                await self._evict_bytes(missing)
        finally:
            self._eviction_lock.release()

    async def write_access_times(self) -> None:
        """Write new access times to the store; a pinned cart is used now."""
        now = self._now()
        for cart_id in self._pins.cart_ids():
            self._access_times.record(cart_id, now)
        times = self._access_times.drain()
        try:
            await self._store.carts.touch(times)
        except BaseException:
            self._access_times.restore(times)
            raise

    async def _reserve_without_eviction(
        self, more: int, promised: Callable[[int | None], Awaitable[bool]]
    ) -> bool:
        """Reserve ``more`` bytes if they fit without an eviction; return whether they do."""
        if more <= 0:
            return await promised(None)
        await self._reservation_lock.acquire()
        try:
            used, missing = await self._shortfall_now(more + self._earmarked)
            return missing <= 0 and await promised(used + more)
        finally:
            self._reservation_lock.release()

    async def _free_space_for(self, cart: Cart, wanted: int) -> int:
        """Free ``wanted`` bytes for the cart.

        Return the bytes that all carts may then occupy together, ``wanted`` included.

        :raises NoSpace, EvictionFailed: as :meth:`reserve`.
        """
        used, missing = await self._shortfall(wanted)
        left = await self._evict_bytes(missing, wanted=wanted)
        if left > 0:
            log.warn(
                "{cart}: no space for {wanted:,} more bytes: {missing:,} are missing"
                " after all possible evictions; all carts use {used:,}, volume_quota = {quota}",
                cart=cart,
                wanted=wanted,
                missing=left,
                used=used,
                quota=self._rules.quota,
            )
            raise NoSpace
        return used + wanted - (missing - left)

    async def _shortfall(self, wanted: int) -> tuple[int, int]:
        """Return the bytes that all carts use or have reserved, and the bytes missing for more.

        If bytes are missing, leftovers of deleted carts are removed first: these may have been
        deleted to free space.
        """
        used, missing = await self._shortfall_now(wanted)
        if missing > 0 and await self._store.removals.pending_removal():
            await self._sweep()
            used, missing = await self._shortfall_now(wanted)
        return used, missing

    async def _shortfall_now(self, wanted: int) -> tuple[int, int]:
        used, promised = await self._store.space.usage()
        short = partial(
            shortfall,
            wanted=wanted,
            used=used,
            quota=self._rules.quota,
            reserve=self._rules.reserve,
        )
        missing = short(free=await self._free_bytes(), promised=promised)
        if missing > 0:
            # Incoming bytes occupy the disk, but still count as promised.  Measuring them means
            # listing every cart's directory, so it is done only when it matters.
            incoming_bytes = await self._incoming_bytes()
            missing = short(
                free=await self._free_bytes(), promised=max(promised - incoming_bytes, 0)
            )
        return used, missing

    async def _evict_bytes(self, missing: int, *, wanted: int | None = None) -> int:
        """Evict carts until ``missing`` bytes are freed; return the bytes still missing.

        If the bytes are for a cart that needs ``wanted`` bytes, nothing is evicted unless all of
        ``missing`` can be freed.  If a download of a chosen cart begins, others are chosen.
        """
        refused = 0
        while missing > 0:
            chosen, frees = await self._choose_candidates(missing)
            if not chosen or (wanted is not None and frees < missing):
                if self._unremovable:
                    _, could_be = await self._choose_candidates(missing, include_unremovable=True)
                    if could_be >= missing:
                        raise EvictionFailed(self._reason)
                break
            if self._removal_blocked.is_waiting(None):
                raise EvictionFailed(self._reason)
            for candidate in chosen:
                self._earmarked = max((wanted or 0) - frees, 0)
                try:
                    freed = await self._evict_candidate(candidate)
                    missing -= freed
                    frees -= freed
                except CannotRemove as error:
                    refused += 1
                    self._record_unremovable(candidate, error, blocked=refused > 1)
                    break  # choose another cart
        return missing

    def _record_unremovable(
        self, candidate: EvictionCandidate, error: CannotRemove, *, blocked: bool
    ) -> None:
        """Do not retry the cart for a while; if ``blocked``, evict no cart for a while.

        :raises EvictionFailed: no cart can be removed.
        """
        known = self._reason == error.reason and bool(self._unremovable)
        self._reason = error.reason
        self._unremovable.failed(candidate.cart_id)
        if not blocked and not self._removal_blocked:
            if not known:
                log.warn("{error}; it is kept, trying to evict another cart", error=error)
            return
        if not self._removal_blocked:
            log.error(
                "Cannot free space on the volume: {reason}; ready carts are kept",
                reason=error.reason,
            )
        self._removal_blocked.failed(None)
        raise EvictionFailed(error.reason)

    async def _evict_candidate(self, candidate: EvictionCandidate) -> int:
        """Evict the cart if it is unchanged since it was chosen; return the bytes freed.

        :raises CannotRemove: the file system refuses.
        """
        cart = await self._store.carts.cart(candidate.cart_id)
        if cart is None or cart.status in UNFINISHED or self._pins.is_pinned(cart.id):
            return 0
        if cart.status == CartStatus.DELETED:
            return candidate.size  # by another process or a client, meanwhile
        if self._access_times.last(cart.id, cart.used) != candidate.used:
            return 0
        freed = await self._evict(cart)
        if freed:
            self._metrics.evictions.inc()
            self._metrics.evicted_bytes.inc(freed)
            self._metrics.eviction_age.observe(max(self._now() - candidate.used, 0.0))
            self._unremovable.succeeded(cart.id)
            if self._removal_blocked:
                self._removal_blocked.succeeded(None)
                log.info("Carts can be evicted again")
        return freed

    async def _choose_candidates(
        self, missing: int, *, include_unremovable: bool = False
    ) -> tuple[list[EvictionCandidate], int]:
        """Return the carts to evict, and the bytes that they free together.

        ``include_unremovable``: include carts that could not be removed recently.
        """
        if not self._rules.eviction_enabled:
            return [], 0
        candidates = {
            one.cart_id: EvictionCandidate(
                one.cart_id, one.size, self._access_times.last(one.cart_id, one.used)
            )
            for one in await self._store.space.evictable()
            if not self._pins.is_pinned(one.cart_id)
        }
        self._unremovable.keep(candidates)
        for cart_id in (
            []
            if include_unremovable
            else [one for one in candidates if self._unremovable.is_waiting(one)]
        ):
            del candidates[cart_id]
        shared_bytes = await self._store.space.shared_bytes()
        while True:
            chosen = choose(
                candidates.values(),
                needed=missing,
                now=self._now(),
                buffer_time=self._rules.buffer_time,
                shared_bytes=shared_bytes,
            )
            in_use = await self._in_use([one.cart_id for one in chosen])
            if not in_use:
                return chosen, freed(chosen, shared_bytes)
            for cart_id in in_use:
                del candidates[cart_id]
