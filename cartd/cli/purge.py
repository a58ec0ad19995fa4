"""``cartd-cmd purge``: deletes carts that have not been used for some time."""

from __future__ import annotations

from typing import TextIO

from cartd.carts.delete import CannotRemove, Removal
from cartd.model import UNFINISHED, Cart, CartStatus
from cartd.store import Store


class Purge:
    """Deletes carts last used before the Unix time ``before``, and prints them to ``out``.

    A finished cart is evicted: it stays if it has been used in the meantime, or if its files cannot
    be removed.
    """

    def __init__(
        self, store: Store, removal: Removal, before: float, out: TextIO, *, dry_run: bool
    ) -> None:
        """``dry_run``: print only, delete nothing."""
        self._store = store
        self._removal = removal
        self._before = before
        self._out = out
        self._dry_run = dry_run

    async def run(self) -> None:
        """Delete the carts, least recently used first.

        :raises CannotRemove: the files of a second cart cannot be removed; the rest stays.
        """
        try:
            await self._delete_all()
        finally:
            await self._removal.wait_until_idle()

    async def _delete_all(self) -> None:
        failed = 0
        carts = [cart for cart in await self._store.carts.active() if cart.used < self._before]
        carts.sort(key=lambda cart: (cart.used, cart.id))
        if not carts:
            self._print("no cart to delete")
        for cart in carts:
            verb = "would delete" if self._dry_run else "deleting"
            self._print(f"{verb} {cart.display_uid} (cart {cart.id}, {cart.volume_bytes:,} bytes)")
            if self._dry_run:
                continue
            try:
                await self._delete(cart)
            except CannotRemove as error:
                failed += 1
                if failed > 1:
                    raise
                self._print(f"{error}; the cart stays")

    async def _delete(self, cart: Cart) -> None:
        while cart.status not in UNFINISHED:
            if await self._removal.evict(cart):
                return
            now = await self._store.carts.cart(cart.id)
            if now is None or now.status == CartStatus.DELETED or now.used >= self._before:
                return
            if now.evicting is not None:
                return  # the service is evicting it, and keeps it if it cannot be removed
            if now.used == cart.used:
                break
            cart = now  # the service writes access times late
        # It is unfinished, has no files of its own, or is being sent; a running download completes.
        await self._removal.delete(cart)

    def _print(self, line: str) -> None:
        print(line, file=self._out)
