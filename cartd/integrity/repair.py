"""Carts whose files on the volume are not what was recorded: found out, and staged again."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from twisted.logger import Logger

from cartd.model import UNFINISHED, Cart, CartFile, CartStatus
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

    async def adopt(self, cart: Cart) -> bool:
        """Measure a ready cart that Pacifica Cartd staged: its rows have no sizes.

        False, and nothing is recorded, if not all of it is on the volume.
        """
        files = await self._all_files(cart)
        if cart.bundle:
            sizes = await self._volume.measure_tar(cart, files)
            volume_bytes = await self._volume.tar_size(cart)
        else:
            sizes = await self._found(cart, files)
            volume_bytes = _sum(sizes)
        if sizes is None or volume_bytes is None or len(sizes) < len(files):
            return False
        await self._store.record_measured(
            cart.id, sizes, bytes_total=_sum(sizes), volume_bytes=volume_bytes
        )
        return True

    async def adopt_all(self) -> None:
        """Measure Pacifica's carts, ready or in error, so that they count for the room.

        A ready one that is not there is left alone until somebody asks for it.
        """
        for cart in await self._store.unmeasured():
            if cart.status == CartStatus.ERROR:
                rest = _sum(await self._found(cart, await self._all_files(cart)))
                await self._store.record_measured(cart.id, [], bytes_total=None, volume_bytes=rest)
            elif not await self.adopt(cart):
                log.info("Cart {id} ({uid}) is not on the volume", id=cart.id, uid=cart.shown_uid)

    async def _found(self, cart: Cart, files: list[CartFile]) -> list[tuple[int, int, int]]:
        found = await self._volume.measure(cart, files)
        return [one for one in found if one is not None]

    async def lost(self, cart: Cart) -> list[int]:
        """The positions of the files that are missing on the volume or have a wrong size."""
        files = await self._all_files(cart)
        if cart.bundle and cart.status == CartStatus.READY:
            return [] if await self._has_its_tar(cart) else [file.position for file in files]
        found = await self._volume.measure(cart, files)
        return [
            file.position
            for file, there in zip(files, found, strict=True)
            if there is None or there[1] != file.size
        ]

    async def is_whole(self, cart: Cart) -> bool:
        """Whether a ready cart has on the volume what was recorded, by names and sizes."""
        return await self._has_its_tar(cart) if cart.bundle else not await self.lost(cart)

    async def _has_its_tar(self, cart: Cart) -> bool:
        """Whether a ready cart that is bundled has a tar of the size that was recorded."""
        measured = cart.bytes_total is not None
        return measured and await self._volume.tar_size(cart) == cart.volume_bytes

    async def give_back(
        self, cart: Cart, damaged: Sequence[int] = (), *, unreadable: str | None = None
    ) -> None:
        """Put a damaged cart, or one in error, back to staging: what is lost is fetched again.

        Lost is what is missing or has a wrong size, what is ``damaged``, positions of files, and
        the one file at the path ``unreadable``, or the bundle that has it.
        """
        current = await self._store.cart(cart.id)
        if current is None or current.status in (*UNFINISHED, CartStatus.DELETED):
            return  # another download found it out, or it is its deletion that was found out
        if unreadable is not None:
            damaged = [*damaged, *await self._positions(current, unreadable)]
        lost = sorted({*damaged, *await self.lost(current)})
        if damaged and current.bundle:
            lost = list(range(current.files_total))  # they are in one tar, which is written anew
        self._plans.forget(cart.id)
        # A bundle of no files has none to lose, and yet may be damaged.
        whole = not lost and (not current.bundle or await self._has_its_tar(current))
        if current.status == CartStatus.READY and whole:
            return  # it has been healed meanwhile
        log.info(
            "Cart {id} ({uid}) goes back to staging: {lost} of its {total} files are fetched again",
            id=cart.id,
            uid=cart.shown_uid,
            lost=len(lost),
            total=cart.files_total,
        )
        if await self._store.restage(cart.id, lost=lost, now=self._now()):
            self._stage(cart.id)

    async def _positions(self, cart: Cart, path: str) -> list[int]:
        files = await self._all_files(cart)
        return [file.position for file in files if cart.bundle or file.path == path]

    async def _all_files(self, cart: Cart) -> list[CartFile]:
        files: list[CartFile] = []
        while rows := await self._store.files(cart.id, after=len(files) - 1, limit=5000):
            files.extend(rows)
        return files


def _sum(sizes: list[tuple[int, int, int]]) -> int:
    return sum(size for _, size, _ in sizes)
