"""What somebody has staged who died before the disk had it: verified before anybody sees it.

After the death of a process alone nothing is verified: what it wrote is in the system's memory
(:func:`cartd.volume.file_system.page_cache_id`), and who looks after it then syncs it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from twisted.internet.defer import Deferred, TimeoutError
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from cartd.errors import Unavailable
from cartd.model import Cart
from cartd.store import Store
from cartd.tar_index_cache import TarIndexCache
from cartd.volume import Volume

TAKEOVER_LEASE = 60.0
"""Seconds for which rows of the dead are ours at first; they are renewed with our own."""
RECOVERY_TIMEOUT = 20.0
"""Seconds for which a request waits for the first recovery."""

log = Logger()


class Recovery:
    """Puts carts back to staging whose files a power failure may have damaged.

    They are hashed there, in their places, and what is wrong is fetched again.
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
        """``page_cache`` gives what this process knows the system's memory by, if it can."""
        self._page_cache = page_cache
        self._store = store
        self._volume = volume
        self._tar_indexes = tar_indexes
        self._clock = clock
        self._now = now
        self._recovered = False
        self._waiting: list[Deferred[None]] = []

    async def recover(self, holder: str, dead: Collection[str]) -> None:
        """Doubt what the ``dead`` have left, and those whose leases have run out."""
        now = self._now()
        left = await self._store.abandoned_dirty_rows(holder, dead=dead, now=now)
        cache = self._page_cache()
        if (left or dead) and cache is not None:
            until = now + TAKEOVER_LEASE
            await self._store.take_over_dirty_rows(holder, cache, dead=dead, now=now, until=until)
            left = await self._store.abandoned_dirty_rows(holder, dead=dead, now=now)
        await self.revalidate(left)
        self._recovered = True
        waiting, self._waiting = self._waiting, []
        for done in waiting:
            done.callback(None)

    async def wait_until_recovered(self) -> None:
        """Wait until it is known which carts are whole after a crash.

        :raises Unavailable: that takes long.
        """
        if self._recovered:
            return
        done: Deferred[None] = Deferred(self._waiting.remove)
        self._waiting.append(done)
        done.addTimeout(RECOVERY_TIMEOUT, self._clock)
        try:
            await done
        except TimeoutError:
            raise Unavailable("What was staged before a crash is looked for; ask again") from None

    async def take_over(self, cart: Cart, holder: str) -> Cart:
        """The cart that ``holder`` has just claimed, without what others left unsynced of it."""
        dirty = await self._store.dirty_rows_of_others(cart.id, holder)
        cache = self._page_cache()
        if dirty and cache is not None:
            until = self._now() + TAKEOVER_LEASE
            await self._store.take_over_dirty_rows_of_cart(cart.id, holder, cache, until=until)
            dirty = await self._store.dirty_rows_of_others(cart.id, holder)
        if not dirty:
            return cart
        await self.revalidate(dirty)
        return await self._store.cart(cart.id) or cart

    async def revalidate(self, dirty: Mapping[int, Sequence[int]]) -> None:
        """Have the files verified that these rows name, by their carts."""
        for cart_id, rows in dirty.items():
            cart = await self._store.cart(cart_id)
            if cart is None or await self._is_bundled(cart):
                await self._store.record_synced(rows)
                continue
            number = await self._store.revalidate(cart_id, rows, now=self._now())
            self._tar_indexes.invalidate(cart_id)
            log.warn(
                "Cart {id} ({uid}): {number} files are verified, nobody knows if the disk had them",
                id=cart_id,
                uid=cart.display_uid,
                number=number,
            )

    async def _is_bundled(self, cart: Cart) -> bool:
        """Whether its tar is there, which has been synced, and its tree is of no use any more."""
        whole = cart.bundle and cart.files_staged == cart.files_total
        return whole and await self._volume.tar_size(cart) is not None
