"""Room on the volume: promised to carts that are staged, made by evicting old ones."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from twisted.internet.defer import DeferredLock
from twisted.logger import Logger

from cartd.errors import NoSpace
from cartd.eviction import Candidate, choose, freed, shortfall
from cartd.model import UNFINISHED, Cart
from cartd.store import Store
from cartd.uses import Uses

log = Logger()


@dataclass(frozen=True, slots=True)
class SpaceRules:
    """What the site allows: sizes in bytes, times in seconds."""

    quota: int | None
    reserve: int
    evicts: bool
    buffer_time: float


class Evictor:
    """Decides, one decision at a time, who gets room and who must leave.

    ``free`` gives the disk's free bytes, ``arriving`` those of files that are being written, and
    ``leaving`` those that deleted carts still take.  ``delete`` gives the bytes that it has freed.
    """

    def __init__(
        self,
        store: Store,
        uses: Uses,
        rules: SpaceRules,
        *,
        free: Callable[[], Awaitable[int]],
        arriving: Callable[[], Awaitable[int]],
        leaving: Callable[[], int],
        delete: Callable[[Cart], Awaitable[int]],
        now: Callable[[], float],
    ) -> None:
        self._store = store
        self._uses = uses
        self._rules = rules
        self._free = free
        self._arriving = arriving
        self._leaving = leaving
        self._delete = delete
        self._now = now
        self._deciding = DeferredLock()

    async def reserve(
        self, cart: Cart, holder: str, *, bytes_total: int, volume_bytes: int
    ) -> None:
        """Promise ``volume_bytes`` to ``cart``, evicting others if that makes enough room.

        What of it is on the volume already, fetched or linked, needs none.

        :raises NoSpace: there is not enough, even with all evicted that may be.
        """
        await self._deciding.acquire()
        try:
            if volume_bytes > cart.bytes_staged:
                missing = await self._shortfall(max(volume_bytes - cart.volume_bytes, 0))
                if not await self._make_room(missing, all_or_nothing=True):
                    raise NoSpace
            await self._store.reserve(
                cart.id, holder, bytes_total=bytes_total, volume_bytes=volume_bytes
            )
        finally:
            self._deciding.release()

    async def keep_room(self) -> None:
        """Write down the uses, then evict until quota and reserve hold again."""
        await self._deciding.acquire()
        try:
            await self.record_uses()
            await self._make_room(await self._shortfall(0), all_or_nothing=False)
        finally:
            self._deciding.release()

    async def record_uses(self) -> None:
        """Write the uses since the last time to the store; what is being sent is used now."""
        self._uses.note_pinned(self._now())
        uses = self._uses.take()
        try:
            await self._store.touch(uses)
        except BaseException:
            self._uses.put_back(uses)
            raise

    async def _shortfall(self, wanted: int) -> int:
        used, promised = await self._store.usage()
        short = partial(
            shortfall,
            wanted=wanted,
            used=used + self._leaving(),
            quota=self._rules.quota,
            reserve=self._rules.reserve,
        )
        missing = short(free=await self._free(), promised=promised)
        if missing > 0:
            # The disk has less free for what arrives, though it still counts as promised.  It
            # takes a look into every cart's directory, so only when it matters.
            arriving = await self._arriving()
            missing = short(free=await self._free(), promised=max(promised - arriving, 0))
        return missing

    async def _make_room(self, missing: int, *, all_or_nothing: bool) -> bool:
        """Evict carts of ``missing`` bytes together; say whether as many were freed.

        A chosen cart may escape because somebody begins to download it: then others are chosen.
        """
        while missing > 0:
            chosen, frees = await self._choose(missing)
            if not chosen or (all_or_nothing and frees < missing):
                return False
            for candidate in chosen:
                missing -= await self._evict(candidate)
        return True

    async def _evict(self, candidate: Candidate) -> int:
        """Delete the cart, unless it is in use by now; give the bytes that were freed."""
        cart = await self._store.cart(candidate.cart_id)
        if cart is None or cart.status in UNFINISHED or self._uses.is_pinned(cart.id):
            return 0
        log.info(
            "Evicting cart {id} ({uid}), {size} bytes",
            id=cart.id,
            uid=cart.uid,
            size=candidate.size,
        )
        return await self._delete(cart)

    async def _choose(self, missing: int) -> tuple[list[Candidate], int]:
        """The carts that are to go, and the bytes that all of them free together."""
        if not self._rules.evicts:
            return [], 0
        candidates = [
            Candidate(one.cart_id, one.size, self._uses.last(one.cart_id, one.used))
            for one in await self._store.evictable()
            if not self._uses.is_pinned(one.cart_id)
        ]
        shares = await self._store.shares()
        chosen = choose(
            candidates,
            needed=missing,
            now=self._now(),
            buffer_time=self._rules.buffer_time,
            shares=shares,
        )
        return chosen, freed(chosen, shares)
