"""Carts whose files on the volume are not what was recorded: found out, and staged again."""

from __future__ import annotations

from collections.abc import Callable

from twisted.logger import Logger

from cartd.model import Cart, CartFile
from cartd.plans import Plans
from cartd.store import Store
from cartd.volume import Volume

log = Logger()


class Repair:
    """Compares names and sizes, not hashes; ``stage`` begins the staging of a cart."""

    def __init__(
        self,
        store: Store,
        volume: Volume,
        plans: Plans,
        *,
        stage: Callable[[int], object],
        now: Callable[[], float],
    ) -> None:
        self._store = store
        self._volume = volume
        self._plans = plans
        self._stage = stage
        self._now = now

    async def lost(self, cart: Cart) -> list[int]:
        """The positions of the files that are missing on the volume or have a wrong size."""
        files = await self.all_files(cart)
        if cart.bundle and cart.bytes_total is not None:
            whole = await self._volume.tar_size(cart) == cart.volume_bytes
            return [] if whole else [file.position for file in files]
        found = await self._volume.measure(cart, files)
        return [
            file.position
            for file, there in zip(files, found, strict=True)
            if there is None or there[1] != file.size
        ]

    async def give_back(self, cart: Cart) -> None:
        """Put a ready cart, or one in error, back to staging: what is lost is fetched again."""
        lost = await self.lost(cart)
        self._plans.forget(cart.id)
        if cart.bundle:
            await self._volume.remove(cart)
        log.info(
            "Cart {id} ({uid}) goes back to staging: {lost} of its {total} files are fetched again",
            id=cart.id,
            uid=cart.uid,
            lost=len(lost),
            total=cart.files_total,
        )
        if await self._store.restage(cart.id, lost=lost, now=self._now()):
            self._stage(cart.id)

    async def all_files(self, cart: Cart) -> list[CartFile]:
        files: list[CartFile] = []
        while rows := await self._store.files(cart.id, after=len(files) - 1, limit=5000):
            files.extend(rows)
        return files
