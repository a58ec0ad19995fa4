"""Verification: reads all bytes of ready carts and compares them with the recorded hashes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

from cartd.model import Cart, CartFile
from cartd.store import Store
from cartd.volume import Volume

PAGE = 2000


@dataclass(frozen=True, slots=True)
class Damage:
    """What is wrong with one file of a cart."""

    position: int
    path: str
    fault: str
    """A short description, as ``is missing``."""


class Verification:
    """Reads carts; changes nothing."""

    def __init__(self, store: Store, volume: Volume) -> None:
        self._store = store
        self._volume = volume

    async def damages(self, cart: Cart, read: Callable[[int], Awaitable[None]]) -> list[Damage]:
        """Return all damage of a ready cart, in the order of the manifest.

        ``read`` is called with each number of bytes read, and may pause.  A cart that is deleted
        while it is read has missing files.
        """
        damages = []
        async for files, faults in self._checked(cart, read):
            found = zip(files, faults, strict=True)
            damages += [Damage(it.position, it.path, fault) for it, fault in found if fault]
        return damages

    async def _checked(
        self, cart: Cart, read: Callable[[int], Awaitable[None]]
    ) -> AsyncIterator[tuple[list[CartFile], list[str]]]:
        """Yield the files page by page, with the fault of each; '' if it is intact."""
        if cart.bundle:
            async for page in self._volume.bundle_faults(cart, self._pages(cart), read):
                yield page
            return
        async for files in self._pages(cart):
            yield files, await self._volume.faults(cart, files, read)

    async def _pages(self, cart: Cart) -> AsyncIterator[list[CartFile]]:
        after = -1
        while page := await self._store.files(cart.id, after=after, limit=PAGE):
            yield page
            after = page[-1].position
