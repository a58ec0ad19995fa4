"""Crash recovery: files that may not have reached the disk are verified before they are sent.

After the crash of a process alone nothing is verified: its files are in the system's page cache
(:func:`cartd.volume.file_system.page_cache_id`), and the process that takes over syncs them.
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
"""Seconds of the first lease on dirty rows of dead processes; it is renewed with the others."""
RECOVERY_TIMEOUT = 20.0
"""Seconds for which a request waits for the first recovery."""

log = Logger()


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
        """Restage carts so that the files of these dirty rows, by cart, are verified."""
        for cart_id, rows in dirty.items():
            cart = await self._store.cart(cart_id)
            if cart is None or await self._is_bundled(cart):
                await self._store.record_synced(rows)
                continue
            number = await self._store.revalidate(cart_id, rows, now=self._now())
            self._tar_indexes.invalidate(cart_id)
            log.warn(
                "Cart {id} ({uid}): verifying {number} files that may not have reached the disk",
                id=cart_id,
                uid=cart.display_uid,
                number=number,
            )

    async def _is_bundled(self, cart: Cart) -> bool:
        """Whether its tar exists: it has been synced, and the files are not needed any more."""
        whole = cart.bundle and cart.files_staged == cart.files_total
        return whole and await self._volume.tar_size(cart) is not None
