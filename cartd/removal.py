"""The end of a cart: marked in the store, taken out of staging, removed from the volume."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from cartd.errors import NoSpace
from cartd.model import Cart, CartStatus
from cartd.store import Store
from cartd.uses import Uses
from cartd.volume import Volume

log = Logger()


class Removal:
    """Deletes carts for whoever asks: a client, the evictor or an admin.

    The store is told first: from then on nobody finds the cart, and a removal that is cut
    short is finished by the next :meth:`sweep`.
    """

    def __init__(
        self,
        store: Store,
        volume: Volume,
        uses: Uses,
        stop_staging: Callable[[int], Awaitable[None]],
        now: Callable[[], float],
    ) -> None:
        self._store = store
        self._volume = volume
        self._uses = uses
        self._stop_staging = stop_staging
        self._now = now
        self._waiting: set[Deferred[None]] = set()
        self._leaving: dict[int, int] = {}
        """Bytes of deleted carts that are still on the volume, by cart id."""

    async def delete(self, cart: Cart) -> int:
        """Delete ``cart`` and give the bytes that are free now: what it shares with others is not.

        Files that are being downloaded go when the last download of them ends.
        """
        owned = await self._store.mark_deleted(cart.id, self._now())
        if owned is not None:
            self._leaving[cart.id] = owned
        await self._stop_staging(cart.id)
        if not self._uses.is_pinned(cart.id):
            return (owned or 0) if await self._remove(cart) else 0
        later = Deferred.fromCoroutine(self._remove_when_unpinned(cart))
        self._waiting.add(later)
        later.addBoth(lambda _: self._waiting.discard(later))
        return 0

    async def delete_all(self, uid: str) -> int:
        """Delete every cart of ``uid`` and give their number.

        The newest goes last: if the process ends in between, none that is older answers in its
        place.
        """
        carts = await self._store.carts_of(uid)
        for cart in reversed(carts):
            await self.delete(cart)
        return len(carts)

    def leaving(self) -> int:
        """Bytes that carts deleted by this process still take of the volume.

        Not those that such a cart only links to: should their owner go too while it is being
        sent, the disk has them for that long, and nobody counts them.
        """
        return sum(self._leaving.values())

    async def sweep(self) -> None:
        """Remove what deleted carts have left on the volume.

        That is what a crash or a failing disk kept from being removed, and what this process went
        on staging when another one deleted the cart.
        """
        leaving = set(self._leaving)
        there = await self._volume.cart_ids()
        for cart_id in leaving.difference(there):
            self._leaving.pop(cart_id, None)  # by somebody else's hand
        for cart_id in await self._store.deleted_among(there):
            cart = await self._store.cart(cart_id)
            if cart is not None and not self._uses.is_pinned(cart_id) and await self._remove(cart):
                log.info(
                    "Removed what was left of deleted cart {id} ({uid})", id=cart.id, uid=cart.uid
                )

    def stop(self) -> None:
        """Leave the rest to the next start's sweep."""
        for later in list(self._waiting):
            later.cancel()

    async def _remove_when_unpinned(self, cart: Cart) -> None:
        await self._uses.unpinned(cart.id)
        await self._remove(cart)

    async def _remove(self, cart: Cart) -> bool:
        try:
            await self._pass_link_on(cart)
            await self._volume.remove(cart)
        except (OSError, NoSpace) as error:
            log.error(
                "Cannot remove cart {id} ({uid}): {error}", id=cart.id, uid=cart.uid, error=error
            )
            return False
        self._leaving.pop(cart.id, None)
        return True

    async def _pass_link_on(self, cart: Cart) -> None:
        """Point the link of the uid at the older cart that answers now, if there is one."""
        heir = await self._store.newest(cart.uid)
        if heir is None or heir.id > cart.id or heir.status != CartStatus.READY:
            return
        await self._volume.link(heir)
        newest = await self._store.newest(cart.uid)
        if newest is None or newest.id != heir.id:
            # It was deleted meanwhile, perhaps removed before the link was there.
            await self._volume.unlink(heir)
