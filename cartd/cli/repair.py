"""``cartd-cmd fixit`` and ``verify``: restage missing and damaged files of carts.

:class:`Fixit` restages and shows the progress; :class:`Verify` compares files with their hashes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TextIO

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from cartd.errors import escape
from cartd.integrity.repair import Orphans, Repair
from cartd.integrity.scrub import CartVerifier, Damage
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
        cart = await self._store.carts.newest(uid)
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
            cart = await self._store.carts.cart(cart_id)
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


class Verify:
    """Verifies carts one by one; ``restore`` restages the damaged files of a cart."""

    def __init__(
        self,
        store: Store,
        verification: CartVerifier,
        orphans: Orphans,
        restore: Callable[[Cart, Sequence[int]], Awaitable[bool]] | None,
        out: TextIO,
        progress: TextIO,
        now: Callable[[], float],
    ) -> None:
        """Without ``restore`` nothing is changed; ``progress`` is used only if it is a terminal."""
        self._store = store
        self._verification = verification
        self._orphans = orphans
        self._restore = restore
        self._out = out
        self._progress = progress
        self._now = now

    async def all(self) -> bool:
        """Verify every ready cart, and look for orphans.

        Returns whether all is intact, or has been repaired.
        """
        carts = [
            cart for cart in await self._store.carts.active() if cart.status == CartStatus.READY
        ]
        right = [await self.cart(cart) for cart in reversed(carts)]
        return all([*right, await self._no_orphans()])

    async def _no_orphans(self) -> bool:
        found = await self._orphans.find()
        for orphan in found:
            self._print(f"directory {orphan.cart_id}: {orphan.size:,} bytes, belongs to no cart")
        if found and self._restore is not None:
            await self._orphans.remove(found)
            self._print(f"{len(found):,} directories removed")
        return not found or self._restore is not None

    async def named(self, uid: str) -> bool:
        """Verify the newest cart of ``uid``."""
        cart = await self._store.carts.newest(uid)
        if cart is None:
            self._print(f"{uid}: no such cart")
            return False
        return await self.cart(cart)

    async def cart(self, cart: Cart) -> bool:
        if cart.status != CartStatus.READY:
            self._print(f"{cart.display_uid}: not verified, its status is {cart.status}")
            return False
        begun = self._now()
        damages = await self._verification.damages(cart, self._counter(cart))
        if not damages:
            await self._store.durability.record_verified(cart.id, begun)
            self._print(
                f"{cart.display_uid}: {_files(cart.files_total)}, {_bytes(cart)} bytes, intact"
            )
            return True
        now = await self._store.carts.cart(cart.id)
        if now is None or now.status != CartStatus.READY:
            self._print(f"{cart.display_uid}: was deleted or restaged in the meantime")
            return True
        self._report(cart, damages)
        if self._restore is None:
            return False
        if not await self._restore(cart, [damage.position for damage in damages]):
            return False
        # Verify again: the volume may have damaged the new files, too.
        return await self._is_repaired(cart)

    async def _is_repaired(self, cart: Cart) -> bool:
        begun = self._now()
        damages = await self._verification.damages(cart, self._counter(cart))
        if not damages:
            await self._store.durability.record_verified(cart.id, begun)
            self._print(f"{cart.uid}: repaired and intact")
            return True
        self._report(cart, damages)
        self._print(f"{cart.uid}: damaged again after the repair: check the volume's disk")
        return False

    def _report(self, cart: Cart, damages: Sequence[Damage]) -> None:
        for damage in damages:
            # A path may contain terminal control sequences.
            self._print(f"{cart.display_uid}: {escape(damage.path)} {damage.fault}")
        self._print(f"{cart.display_uid}: {len(damages):,} of {_files(cart.files_total)} damaged")

    def _counter(self, cart: Cart) -> Callable[[int], Awaitable[None]]:
        done = 0

        async def read(size: int) -> None:
            nonlocal done
            done += size
            if self._progress.isatty():
                self._progress.write(
                    f"\r\x1b[K{cart.display_uid}: {done:,} of {_bytes(cart)} bytes"
                )
                self._progress.flush()

        return read

    def _print(self, line: str) -> None:
        if self._progress.isatty():
            self._progress.write("\r\x1b[K")
            self._progress.flush()
        self._out.write(f"{line}\n")
        self._out.flush()


def _files(number: int) -> str:
    return f"{number:,} file" if number == 1 else f"{number:,} files"


def _bytes(cart: Cart) -> str:
    return "?" if cart.bytes_total is None else f"{cart.bytes_total:,}"
