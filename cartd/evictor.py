"""Room on the volume: promised to carts that are staged, made by evicting old ones."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from twisted.internet.defer import DeferredLock
from twisted.logger import Logger

from cartd.backoff import Backoff
from cartd.errors import EvictionFailed, NoSpace
from cartd.eviction import Candidate, choose, freed, shortfall
from cartd.model import UNFINISHED, Cart, CartStatus
from cartd.pins import AccessTimes, Pins
from cartd.removal import CannotRemove
from cartd.store import Store
from cartd.volume.remove import RemovalStopped

log = Logger()


@dataclass(frozen=True, slots=True)
class SpaceRules:
    """What the site allows: sizes in bytes, times in seconds."""

    quota: int | None
    reserve: int
    eviction_enabled: bool
    buffer_time: float


class Evictor:
    """Decides who gets room and who must leave.

    ``free_bytes`` returns the disk's free bytes, ``incoming_bytes`` those of files being written.
    ``in_use`` tells which of some carts are being sent, by other processes too.  ``evict`` gives
    the bytes that it has freed, and is :meth:`cartd.removal.Removal.evict`; ``sweep`` removes what
    deleted carts have left.  ``now`` gives Unix time, ``monotonic`` is a steady clock.

    A cart that cannot be removed stays as it is, and is no candidate for a while.  When a second
    one cannot be, it is taken for the file system's fault, and the round ends.
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
        self._eviction_lock = DeferredLock()
        """Held by who frees room, as long as carts are removed for it; others wait in their order,
        but for those who find room without that."""
        self._reservation_lock = DeferredLock()
        """Held by who finds room without that, for as long as it takes to promise it."""
        self._earmarked = 0
        """Bytes of the room that is there already, for the cart that carts are removed for: it has
        come first, and needs them beside what these free."""
        self._unremovable: Backoff[int] = Backoff(monotonic)
        """Carts that could not be removed when they were tried, by their ids."""
        self._removal_blocked: Backoff[None] = Backoff(monotonic)
        """One key: no cart can be removed, as far as is known."""
        self._reason = ""
        """What the system said last of a cart that could not be removed."""

    async def reserve(
        self, cart: Cart, holder: str, *, bytes_total: int, volume_bytes: int
    ) -> None:
        """Promise ``volume_bytes`` to ``cart``, evicting others if that makes enough room.

        What of it is on the volume already, fetched or linked, needs none; nor does what the cart
        was promised before a stop, even if there is too little room by now.

        :raises NoSpace: there is not enough, even with all evicted that may be.
        :raises EvictionFailed: there would be, but what is to be evicted cannot be removed.
        """

        async def promised(most: int | None) -> bool:
            return await self._store.reserve(
                cart.id, holder, bytes_total=bytes_total, volume_bytes=volume_bytes, limit=most
            )

        def lacking() -> int:
            return volume_bytes - cart.volume_bytes if volume_bytes > cart.bytes_staged else 0

        if await self._reserve_without_eviction(lacking(), promised):
            return
        await self._eviction_lock.acquire()
        try:
            while True:
                cart = await self._store.cart(cart.id) or cart
                more = lacking()
                most = await self._free_space_for(cart, more) if more > 0 else None
                if await promised(most):
                    return
                # Others may have got the room meanwhile, or counted more of this cart.
        finally:
            self._earmarked = 0
            self._eviction_lock.release()

    async def enforce_limits(self) -> None:
        """Write down the uses, then evict until quota and reserve hold again."""
        await self.write_access_times()
        await self._eviction_lock.acquire()
        try:
            _, missing = await self._shortfall(0)
            with suppress(EvictionFailed, RemovalStopped):  # it has been said, or need not be
                await self._evict_bytes(missing)
        finally:
            self._eviction_lock.release()

    async def write_access_times(self) -> None:
        """Write the uses since the last time to the store; what is being sent is used now."""
        now = self._now()
        for cart_id in self._pins.cart_ids():
            self._access_times.record(cart_id, now)
        times = self._access_times.drain()
        try:
            await self._store.touch(times)
        except BaseException:
            self._access_times.restore(times)
            raise

    async def _reserve_without_eviction(
        self, more: int, promised: Callable[[int | None], Awaitable[bool]]
    ) -> bool:
        """Promise so many bytes if there is room for them as things are."""
        if more <= 0:
            return await promised(None)
        await self._reservation_lock.acquire()
        try:
            used, missing = await self._shortfall_now(more + self._earmarked)
            return missing <= 0 and await promised(used + more)
        finally:
            self._reservation_lock.release()

    async def _free_space_for(self, cart: Cart, wanted: int) -> int:
        """Make room for so many bytes more of the cart.

        Gives what all carts together take then, with them.

        :raises NoSpace: there is not enough, even with all evicted that may be.
        :raises EvictionFailed: there would be, but what is to be evicted cannot be removed.
        """
        used, missing = await self._shortfall(wanted)
        left = await self._evict_bytes(missing, wanted=wanted)
        if left > 0:
            log.warn(
                "Cart {id} ({uid}) needs {wanted:,} bytes more: {missing:,} are missing, with all"
                " evicted that may be; all carts have {used:,}, of volume_quota = {quota}",
                id=cart.id,
                uid=cart.display_uid,
                wanted=wanted,
                missing=left,
                used=used,
                quota=self._rules.quota,
            )
            raise NoSpace
        return used + wanted - (missing - left)

    async def _shortfall(self, wanted: int) -> tuple[int, int]:
        """Bytes that all carts take or were promised, and those that are missing for more.

        Before any are, what deleted carts have left goes: they may have been deleted for this.
        """
        used, missing = await self._shortfall_now(wanted)
        if missing > 0 and await self._store.pending_removal():
            await self._sweep()
            used, missing = await self._shortfall_now(wanted)
        return used, missing

    async def _shortfall_now(self, wanted: int) -> tuple[int, int]:
        used, promised = await self._store.usage()
        short = partial(
            shortfall,
            wanted=wanted,
            used=used,
            quota=self._rules.quota,
            reserve=self._rules.reserve,
        )
        missing = short(free=await self._free_bytes(), promised=promised)
        if missing > 0:
            # The disk has less free for what arrives, though it still counts as promised.  It
            # takes a look into every cart's directory, so only when it matters.
            incoming_bytes = await self._incoming_bytes()
            missing = short(
                free=await self._free_bytes(), promised=max(promised - incoming_bytes, 0)
            )
        return used, missing

    async def _evict_bytes(self, missing: int, *, wanted: int | None = None) -> int:
        """Evict carts of ``missing`` bytes together; give how many are missing then.

        These are for a cart that wants so many bytes, if one does: then all is freed, or nothing.

        A chosen cart may escape because somebody begins to download it: then others are chosen.
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
                    self._note_unremovable(candidate, error, blocked=refused > 1)
                    break  # another is chosen in its place
        return missing

    def _note_unremovable(
        self, candidate: Candidate, error: CannotRemove, *, blocked: bool
    ) -> None:
        """Leave the cart alone for a while, and all others too if no cart can be removed.

        :raises EvictionFailed: none can.
        """
        known = self._reason == error.reason and bool(self._unremovable)
        self._reason = error.reason
        self._unremovable.failed(candidate.cart_id)
        if not blocked and not self._removal_blocked:
            if not known:
                log.warn("{error}; it stays, and another is evicted if possible", error=error)
            return
        if not self._removal_blocked:
            log.error(
                "The volume cannot be freed: {reason}; carts that are ready stay",
                reason=error.reason,
            )
        self._removal_blocked.failed(None)
        raise EvictionFailed(error.reason)

    async def _evict_candidate(self, candidate: Candidate) -> int:
        """Evict the cart if it is still as it was when it was chosen; the bytes that were freed.

        :raises CannotRemove: the file system refuses.
        """
        cart = await self._store.cart(candidate.cart_id)
        if cart is None or cart.status in UNFINISHED or self._pins.is_pinned(cart.id):
            return 0
        if cart.status == CartStatus.DELETED:
            return candidate.size  # by somebody else, meanwhile
        if self._access_times.last(cart.id, cart.used) != candidate.used:
            return 0
        freed = await self._evict(cart)
        if freed:
            self._unremovable.succeeded(cart.id)
            if self._removal_blocked:
                self._removal_blocked.succeeded(None)
                log.info("The volume can be freed again")
        return freed

    async def _choose_candidates(
        self, missing: int, *, include_unremovable: bool = False
    ) -> tuple[list[Candidate], int]:
        """The carts that are to go, and the bytes that all of them free together.

        ``include_unremovable``: and those among them that could not be removed of late.
        """
        if not self._rules.eviction_enabled:
            return [], 0
        candidates = {
            one.cart_id: Candidate(
                one.cart_id, one.size, self._access_times.last(one.cart_id, one.used)
            )
            for one in await self._store.evictable()
            if not self._pins.is_pinned(one.cart_id)
        }
        self._unremovable.keep(candidates)
        for cart_id in (
            []
            if include_unremovable
            else [one for one in candidates if self._unremovable.is_waiting(one)]
        ):
            del candidates[cart_id]
        shares = await self._store.shared_bytes()
        while True:
            chosen = choose(
                candidates.values(),
                needed=missing,
                now=self._now(),
                buffer_time=self._rules.buffer_time,
                shares=shares,
            )
            in_use = await self._in_use([one.cart_id for one in chosen])
            if not in_use:
                return chosen, freed(chosen, shares)
            for cart_id in in_use:
                del candidates[cart_id]
