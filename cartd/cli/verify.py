"""``cartd-cmd verify``: compares what is on the volume with its hashes, and has it repaired."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TextIO

from cartd.integrity.orphans import Orphans
from cartd.integrity.verification import Damage, Verification
from cartd.model import Cart, CartStatus
from cartd.store import Store
from cartd.text import escape


class Verify:
    """Verifies one cart after the other; ``restore`` stages again what is damaged of one."""

    def __init__(
        self,
        store: Store,
        verification: Verification,
        orphans: Orphans,
        restore: Callable[[Cart, Sequence[int]], Awaitable[bool]] | None,
        out: TextIO,
        progress: TextIO,
        now: Callable[[], float],
    ) -> None:
        """Without ``restore`` nothing is changed; ``progress`` is shown only on a terminal."""
        self._store = store
        self._verification = verification
        self._orphans = orphans
        self._restore = restore
        self._out = out
        self._progress = progress
        self._now = now

    async def all(self) -> bool:
        """Verify every ready cart, and that all else is some cart's.

        Whether all is right, or has been made so.
        """
        carts = [cart for cart in await self._store.active() if cart.status == CartStatus.READY]
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
        cart = await self._store.newest(uid)
        if cart is None:
            self._print(f"{uid}: there is no such cart")
            return False
        return await self.cart(cart)

    async def cart(self, cart: Cart) -> bool:
        if cart.status != CartStatus.READY:
            self._print(f"{cart.display_uid}: is {cart.status}, and not verified")
            return False
        begun = self._now()
        damages = await self._verification.damages(cart, self._counter(cart))
        if not damages:
            await self._store.record_verified(cart.id, begun)
            self._print(
                f"{cart.display_uid}: {_files(cart.files_total)}, {_bytes(cart)} bytes, intact"
            )
            return True
        now = await self._store.cart(cart.id)
        if now is None or now.status != CartStatus.READY:
            self._print(f"{cart.display_uid}: has been deleted or staged again meanwhile")
            return True
        self._report(cart, damages)
        if self._restore is None:
            return False
        if not await self._restore(cart, [damage.position for damage in damages]):
            return False
        # That it was fetched again says nothing of what the volume has made of it.
        return await self._is_repaired(cart)

    async def _is_repaired(self, cart: Cart) -> bool:
        begun = self._now()
        damages = await self._verification.damages(cart, self._counter(cart))
        if not damages:
            await self._store.record_verified(cart.id, begun)
            self._print(f"{cart.uid}: repaired, and right")
            return True
        self._report(cart, damages)
        self._print(f"{cart.uid}: is damaged again: look after the volume's disk")
        return False

    def _report(self, cart: Cart, damages: Sequence[Damage]) -> None:
        for damage in damages:
            # A path may hold what a terminal would obey.
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
