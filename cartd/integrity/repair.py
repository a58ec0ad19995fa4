"""Carts whose files on the volume are not what was recorded: found out, and staged again."""

from __future__ import annotations

from array import array
from collections.abc import AsyncIterator, Callable, Container, Sequence

from twisted.logger import Logger

from cartd.errors import VolumeNotWritable
from cartd.model import UNFINISHED, Cart, CartFile, CartStatus
from cartd.store import Store
from cartd.tar_index_cache import TarIndexCache
from cartd.volume import Volume

PAGE = 2000
"""Files that are looked at at once: a cart of a million costs no more memory than a small one."""
MAX_RESTAGES = 5
"""How often a cart may be found damaged within ``RESTAGE_WINDOW``: what is fetched again so often
and does not stay is not damaged by chance."""
RESTAGE_WINDOW = 600.0
"""Seconds."""

log = Logger()


class Repair:
    """Compares names and sizes, not hashes; ``stage`` begins the staging of a cart."""

    def __init__(
        self,
        store: Store,
        volume: Volume,
        tar_indexes: TarIndexCache,
        *,
        stage: Callable[[int], object],
        now: Callable[[], float],
    ) -> None:
        self._store = store
        self._volume = volume
        self._tar_indexes = tar_indexes
        self._stage = stage
        self._now = now
        self._restaged_at: dict[int, list[float]] = {}
        """When carts were, by their ids; only what is within ``RESTAGE_WINDOW`` matters, so a
        process that begins anew may well have forgotten it."""
        self._write_error: str | None = None
        """What the log has said why the volume cannot be written."""

    async def import_cart(self, cart: Cart) -> bool:
        """Measure a ready cart that Pacifica Cartd staged: its rows have no sizes.

        False, and nothing is recorded, if not all of it is on the volume.
        """
        files = await self._all_files(cart)
        if cart.bundle:
            sizes = await self._volume.stat_tar_members(cart, files)
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

    async def import_all(self) -> None:
        """Measure Pacifica's carts, ready or in error, so that they count for the room.

        A ready one that is not there is left alone until somebody asks for it.
        """
        for cart in await self._store.unmeasured():
            if cart.status == CartStatus.ERROR:
                rest = 0
                async for files in self._pages(cart):
                    rest += _sum(await self._found(cart, files))
                await self._store.record_measured(cart.id, [], bytes_total=None, volume_bytes=rest)
            elif not await self.import_cart(cart):
                log.info("Cart {id} ({uid}) is not on the volume", id=cart.id, uid=cart.display_uid)

    async def _found(self, cart: Cart, files: list[CartFile]) -> list[tuple[int, int, int]]:
        found = await self._volume.stat_files(cart, files)
        return [one for one in found if one is not None]

    async def damaged_positions(
        self, cart: Cart, damaged: Container[int] = (), unreadable: str | None = None
    ) -> Sequence[int]:
        """The positions of the files that are missing on the volume or have a wrong size.

        And of those that are known to be ``damaged``, or are at the path ``unreadable``.  All of a
        bundle, if anything is wrong with it: its files are in one tar, which is written anew.
        """
        if cart.bundle and cart.status == CartStatus.READY:
            known = unreadable is not None or damaged
            return range(cart.files_total) if known or not await self._has_its_tar(cart) else ()
        lost = array("q")
        async for files in self._pages(cart):
            found = await self._volume.stat_files(cart, files)
            lost.extend(
                file.position
                for file, there in zip(files, found, strict=True)
                if there is None
                or there[1] != file.size
                or file.position in damaged
                or file.path == unreadable
            )
        return range(cart.files_total) if cart.bundle and damaged else lost

    async def is_intact(self, cart: Cart) -> bool:
        """Whether a ready cart has on the volume what was recorded, by names and sizes."""
        return (
            await self._has_its_tar(cart) if cart.bundle else not await self.damaged_positions(cart)
        )

    async def _has_its_tar(self, cart: Cart) -> bool:
        """Whether a ready cart that is bundled has a tar of the size that was recorded."""
        measured = cart.bytes_total is not None
        return measured and await self._volume.tar_size(cart) == cart.volume_bytes

    async def restage(
        self, cart: Cart, damaged: Sequence[int] = (), *, unreadable: str | None = None
    ) -> None:
        """Put a damaged cart, or one in error, back to staging: what is lost is fetched again.

        Lost is what is missing or has a wrong size, what is ``damaged``, positions of files, and
        the one file at the path ``unreadable``, or the bundle that has it.

        :raises VolumeNotWritable: nothing could be written, so a ready cart stays as it is; the log
            has one line for all of them.
        """
        current = await self._store.cart(cart.id)
        if current is None or current.status in (*UNFINISHED, CartStatus.DELETED):
            return  # another download found it out, or it is its deletion that was found out
        lost = await self.damaged_positions(current, frozenset(damaged), unreadable)
        self._tar_indexes.invalidate(cart.id)
        # A bundle of no files has none to lose, and yet may be damaged.
        whole = not lost and (not current.bundle or await self._has_its_tar(current))
        if current.status == CartStatus.READY and whole:
            return  # it has been healed meanwhile
        if current.status == CartStatus.READY:
            await self._check_writable(current)
        if current.status == CartStatus.READY and self._restaged_too_often(cart.id):
            await self._fail_permanently(current)
            return
        log.info(
            "Cart {id} ({uid}) goes back to staging: {lost} of its {total} files are fetched again",
            id=cart.id,
            uid=cart.display_uid,
            lost=len(lost),
            total=cart.files_total,
        )
        if await self._store.restage(cart.id, lost=lost, now=self._now()):
            self._stage(cart.id)

    async def _check_writable(self, cart: Cart) -> None:
        try:
            await self._volume.check_writable()
        except VolumeNotWritable as error:
            if self._write_error != error.reason:
                self._write_error = error.reason
                log.error(
                    "The volume cannot be written: {reason}. Carts that are damaged stay ready and"
                    " are not sent until it can be; cart {id} ({uid}) is one. Please look after"
                    " the disk",
                    reason=error.reason,
                    id=cart.id,
                    uid=cart.display_uid,
                )
            raise
        if self._write_error is not None:
            self._write_error = None
            log.info("The volume can be written again")

    def _restaged_too_often(self, cart_id: int) -> bool:
        """Whether the cart has been given back too often of late; if not, it is once more now."""
        now = self._now()
        self._restaged_at = {
            one: times
            for one, times in self._restaged_at.items()
            if now - times[-1] < RESTAGE_WINDOW
        }
        times = self._restaged_at.setdefault(cart_id, [])
        times[:] = [time for time in times if now - time < RESTAGE_WINDOW]
        if len(times) >= MAX_RESTAGES:
            del self._restaged_at[cart_id]
            return True
        times.append(now)
        return False

    async def _fail_permanently(self, cart: Cart) -> None:
        message = (
            f"Its files were found damaged on the volume {MAX_RESTAGES + 1} times within"
            f" {RESTAGE_WINDOW / 60:.0f} minutes, though they were fetched again each time:"
            " look after the volume's disk, then stage it again with cartd-cmd fixit"
        )
        if await self._store.record_unrecoverable(cart.id, message, now=self._now()):
            log.error(
                "Cart {id} ({uid}) is in error: {message}",
                id=cart.id,
                uid=cart.display_uid,
                message=message,
            )

    async def _pages(self, cart: Cart) -> AsyncIterator[list[CartFile]]:
        after = -1
        while files := await self._store.files(cart.id, after=after, limit=PAGE):
            yield files
            after = files[-1].position

    async def _all_files(self, cart: Cart) -> list[CartFile]:
        return [file async for files in self._pages(cart) for file in files]


def _sum(sizes: list[tuple[int, int, int]]) -> int:
    return sum(size for _, size, _ in sizes)
