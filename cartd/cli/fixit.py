"""``cartd-cmd fixit``: restages missing files of carts, and shows the progress."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TextIO

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from cartd.integrity.repair import Repair
from cartd.model import UNFINISHED, Cart, CartStatus
from cartd.store import Store

POLL_INTERVAL = 0.5
"""Seconds between two polls of a cart that is being staged."""


class Fixit:
    """Fixes carts one by one; ``begin`` stages a cart unless another process does."""

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
        """Restage the newest cart of ``uid`` if needed; return whether it is ready."""
        cart = await self._store.newest(uid)
        if cart is None:
            self._print(f"{uid}: no such cart")
            return False
        if cart.status == CartStatus.READY and await self._is_whole(cart):
            self._print(f"{uid}: ready, nothing to fix")
            return True
        return await self.restore(cart)

    async def restore(self, cart: Cart, damaged: Sequence[int] = ()) -> bool:
        """Restage missing files and those at the positions ``damaged``; return success."""
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
        """Show the progress of the cart until it is finished, and return it.

        If another process stages it and dies or releases it, this process continues.
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
