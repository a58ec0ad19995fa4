"""Room on the volume: promised to carts that are staged, made by evicting old ones."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from twisted.internet.defer import DeferredLock
from twisted.logger import Logger

from cartd.errors import NoSpace
from cartd.eviction import Candidate, choose, shortfall
from cartd.model import Cart
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
    """Decides, one decision at a time, who gets room and who must leave."""

    def __init__(
        self,
        store: Store,
        uses: Uses,
        rules: SpaceRules,
        *,
        free: Callable[[], Awaitable[int]],
        delete: Callable[[Cart], Awaitable[bool]],
        now: Callable[[], float],
    ) -> None:
        self._store = store
        self._uses = uses
        self._rules = rules
        self._free = free
        self._delete = delete
        self._now = now
        self._deciding = DeferredLock()

    async def reserve(
        self, cart: Cart, holder: str, *, bytes_total: int, volume_bytes: int
    ) -> None:
        """Promise ``volume_bytes`` to ``cart``, evicting others if that makes enough room.

        :raises NoSpace: there is not enough, even with all evicted that may be.
        """
        await self._deciding.acquire()
        try:
            missing = await self._shortfall(max(volume_bytes - cart.volume_bytes, 0))
            if missing > 0 and await self._evict(missing, all_or_nothing=True) < missing:
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
            missing = await self._shortfall(0)
            if missing > 0 and self._rules.evicts:
                await self._evict(missing, all_or_nothing=False)
        finally:
            self._deciding.release()

    async def record_uses(self) -> None:
        """Write the uses since the last time to the store."""
        uses = self._uses.take()
        try:
            await self._store.touch(uses)
        except BaseException:
            self._uses.put_back(uses)
            raise

    async def _shortfall(self, wanted: int) -> int:
        used, promised = await self._store.usage()
        return shortfall(
            wanted=wanted,
            free=await self._free(),
            promised=promised,
            used=used,
            quota=self._rules.quota,
            reserve=self._rules.reserve,
        )

    async def _evict(self, missing: int, *, all_or_nothing: bool) -> int:
        """Evict carts of ``missing`` bytes together; give the bytes that were freed."""
        chosen = await self._choose(missing)
        if all_or_nothing and sum(candidate.size for candidate in chosen) < missing:
            return 0
        freed = 0
        for candidate in chosen:
            cart = await self._store.cart(candidate.cart_id)
            if cart is None or self._uses.is_pinned(cart.id):
                continue
            log.info(
                "Evicting cart {id} ({uid}), {size} bytes",
                id=cart.id,
                uid=cart.uid,
                size=candidate.size,
            )
            if await self._delete(cart):
                freed += candidate.size
        return freed

    async def _choose(self, missing: int) -> list[Candidate]:
        if not self._rules.evicts:
            return []
        candidates = [
            Candidate(one.cart_id, one.size, self._uses.last(one.cart_id, one.used))
            for one in await self._store.evictable()
            if not self._uses.is_pinned(one.cart_id)
        ]
        return choose(
            candidates, needed=missing, now=self._now(), buffer_time=self._rules.buffer_time
        )
