"""``cartd-cmd fixit``: stages again what a cart lacks, and shows how far it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TextIO

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from cartd.integrity.repair import Repair
from cartd.model import UNFINISHED, Cart, CartStatus
from cartd.store import Store

POLL_INTERVAL = 0.5
"""Seconds between two looks at a cart that is being staged."""


class Fixit:
    """Fixes one cart after the other; ``begin`` stages a cart here, unless somebody else does."""

    def __init__(
        self,
        store: Store,
        repair: Repair,
        begin: Callable[[int], object],
        clock: IReactorTime,
        out: TextIO,
    ) -> None:
        self._store = store
        self._repair = repair
        self._begin = begin
        self._clock = clock
        self._out = out

    async def fix(self, uid: str) -> bool:
        """Bring the newest cart of ``uid`` to ready; say whether that went well."""
        cart = await self._store.newest(uid)
        if cart is None:
            self._print(f"{uid}: there is no such cart")
            return False
        if cart.status == CartStatus.READY and await self._is_whole(cart):
            self._print(f"{uid}: ready, nothing to fix")
            return True
        return await self.restore(cart)

    async def restore(self, cart: Cart, damaged: Sequence[int] = ()) -> bool:
        """Stage again what the cart lacks, and the files at the positions ``damaged``."""
        if cart.status not in UNFINISHED:
            await self._repair.restage(cart, damaged)
        cart = await self._watch(cart.id)
        self._print(f"{cart.display_uid}: {cart.status}{f', {cart.error}' if cart.error else ''}")
        return cart.status == CartStatus.READY

    async def _is_whole(self, cart: Cart) -> bool:
        if cart.bytes_total is None:
            return await self._repair.import_cart(cart)
        return await self._repair.is_intact(cart)

    async def _watch(self, cart_id: int) -> Cart:
        """Show the progress of the cart, whoever stages it, until it has ended.

        Whoever did may die or let go of it: then this process goes on.
        """
        said = ""
        while True:
            cart = await self._store.cart(cart_id)
            assert cart is not None
            self._show(cart)
            if cart.status not in UNFINISHED:
                return cart
            if cart.message not in ("", said):
                said = cart.message
                self._print(f"{cart.display_uid}: {said}")
            self._begin(cart_id)
            await deferLater(self._clock, POLL_INTERVAL)

    def _show(self, cart: Cart) -> None:
        if self._out.isatty():
            total = "?" if cart.bytes_total is None else f"{cart.bytes_total:,}"
            self._out.write(
                f"\r\x1b[K{cart.display_uid}: {cart.files_staged:,} of {cart.files_total:,} files, "
                f"{cart.bytes_staged:,} of {total} bytes"
            )
            self._out.flush()

    def _print(self, line: str) -> None:
        self._out.write(f"\r\x1b[K{line}\n" if self._out.isatty() else f"{line}\n")
        self._out.flush()
