"""What ready carts have on the volume, read to its last byte and compared with the store."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from cartd.model import Cart, CartFile
from cartd.store import Store
from cartd.volume import Volume

PAGE = 2000
TOGETHER = 64 * 2**20
"""Bytes of files that one trip to a thread reads, unless a single file has more."""


@dataclass(frozen=True, slots=True)
class Damage:
    """What is wrong with one file of a cart."""

    position: int
    path: str
    fault: str
    """In a few words: ``is missing``."""


class Verification:
    """Reads carts; nothing is changed.  ``read`` is told of each number of bytes that was read."""

    def __init__(self, store: Store, volume: Volume) -> None:
        self._store = store
        self._volume = volume

    async def damages(self, cart: Cart, read: Callable[[int], object]) -> list[Damage]:
        """All that is wrong with a ready cart, in the manifest's order.

        The cart must stay while it is read: what is deleted meanwhile is missing.
        """
        if cart.bundle:
            files = [file async for page in self._pages(cart) for file in page]
            found = zip(files, await self._volume.tar_faults(cart, files), strict=True)
            read(sum(file.size or 0 for file in files))
            return [Damage(it.position, it.path, fault) for it, fault in found if fault]
        damages = []
        async for some in self._trips(cart):
            faults = await self._volume.faults(cart, some)
            read(sum(file.size or 0 for file in some))
            found = zip(some, faults, strict=True)
            damages += [Damage(it.position, it.path, fault) for it, fault in found if fault]
        return damages

    async def _pages(self, cart: Cart) -> AsyncIterator[list[CartFile]]:
        after = -1
        while page := await self._store.files(cart.id, after=after, limit=PAGE):
            yield page
            after = page[-1].position

    async def _trips(self, cart: Cart) -> AsyncIterator[list[CartFile]]:
        some: list[CartFile] = []
        size = 0
        async for page in self._pages(cart):
            for file in page:
                some.append(file)
                size += file.size or 0
                if size >= TOGETHER or len(some) >= PAGE:
                    yield some
                    some, size = [], 0
        if some:
            yield some
