"""The end of a cart: marked in the store, taken out of staging, removed from the volume."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from weakref import WeakValueDictionary

from twisted.internet.defer import Deferred, DeferredLock
from twisted.logger import Logger

from cartd.errors import NoSpace, Unavailable, VolumeAway
from cartd.model import Asker, Cart, CartStatus
from cartd.store import Store
from cartd.uses import Uses
from cartd.volume import Volume
from cartd.volume.removal import RemovalStopped

log = Logger()


class Removal:
    """Deletes carts for whoever asks: a client, the evictor or an admin.

    The store is told first: from then on nobody finds the cart, and a removal that is cut
    short is finished by the next :meth:`sweep`.  The store is told last, too: until then the cart
    counts for the room.
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
        self._turns: WeakValueDictionary[int, DeferredLock] = WeakValueDictionary()
        """By cart id: who comes to remove one that is being removed waits until it has gone."""

    async def delete(self, cart: Cart) -> int:
        """Delete ``cart`` and give the bytes that are free now: what it shares with others is not.

        Files that are being downloaded go when the last download of them ends; if that is another
        process's, with the first sweep after it.
        """
        await self._store.mark_deleted(cart.id, self._now())
        await self._stop_staging(cart.id)
        if not self._uses.is_pinned(cart.id):
            return await self._remove(cart) or 0
        later = Deferred.fromCoroutine(self._remove_when_unpinned(cart))
        self._waiting.add(later)
        later.addBoth(lambda _: self._waiting.discard(later))
        return 0

    async def delete_all(self, asker: Asker, uid: str) -> int:
        """Delete every cart of ``uid`` that ``asker`` sees, and give their number.

        The newest goes last: if the process ends in between, none that is older answers in its
        place.
        """
        carts = await self._store.carts_for(asker, uid)
        for cart in reversed(carts):
            await self.delete(cart)
        return len(carts)

    async def sweep(self) -> None:
        """Remove what deleted carts have left on the volume.

        That is what a crash or a failing disk kept from being removed, and what this process went
        on staging when another one deleted the cart.
        """
        await self._volume.check()
        leaving = await self._store.leaving()
        there = await self._volume.cart_ids()
        # One that has no directory may have left its link.
        for cart_id in sorted({*leaving, *await self._store.deleted_among(there)}):
            cart = await self._store.cart(cart_id)
            if cart is None or self._uses.is_pinned(cart_id):
                continue
            if await self._remove(cart) is not None:
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

    async def _remove(self, cart: Cart) -> int | None:
        """The bytes that are free now; none if the cart is still there."""
        turn = self._turns.setdefault(cart.id, DeferredLock())
        await turn.acquire()
        try:
            await self._pass_link_on(cart)
            if not await self._volume.remove(cart):
                log.debug("Cart {id} ({uid}) goes later: it is in use", id=cart.id, uid=cart.uid)
                return None
            return await self._store.record_removed(cart.id, self._now())
        except (RemovalStopped, VolumeAway):
            return None  # the sweep removes it at the next start, or once the volume is back
        except (OSError, NoSpace, Unavailable) as error:
            log.error(
                "Cannot remove cart {id} ({uid}): {error}", id=cart.id, uid=cart.uid, error=error
            )
            return None
        finally:
            turn.release()

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
