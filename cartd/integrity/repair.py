"""Repair of damaged carts, measuring of Pacifica's carts, and removal of orphans.

Files are missing or damaged after the store or the volume was restored from a backup, or after a
power failure.  The functions below are for unfinished carts, whose staging fetches them again.
After such a restore there may also be orphans: directories of carts posted since the backup.
"""

from __future__ import annotations

from array import array
from collections.abc import AsyncIterator, Callable, Container, Sequence

from twisted.logger import Logger

from cartd.errors import Unavailable, VolumeNotWritable
from cartd.model import UNFINISHED, Cart, CartFile, CartStatus, FileStatus
from cartd.sending.tar_index_cache import TarIndexCache
from cartd.store import Carts, Store
from cartd.volume import FileFacts, Volume
from cartd.volume.remove import Orphan

log = Logger()

PAGE = 2000
"""Files checked at a time: a cart of a million files takes no more memory than a small one."""
MAX_RESTAGES = 5
"""How often a cart may be restaged within ``RESTAGE_WINDOW``: after that, the disk is broken."""
RESTAGE_WINDOW = 600.0
"""Seconds."""
ORPHANS_BATCH = 100
"""Orphans that are renamed before they are removed."""


class Repair:
    """Compares names and sizes, not hashes; ``stage`` starts the staging of a cart."""

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
        """By cart id, the times within ``RESTAGE_WINDOW``; they need not survive a restart."""
        self._write_error: str | None = None
        """The last logged reason why the volume is not writable."""

    async def import_cart(self, cart: Cart) -> bool:
        """Record the sizes of a ready cart that Pacifica Cartd staged, whose rows have none.

        Return False, and record nothing, if some of it is missing on the volume.
        """
        files = await self._all_files(cart)
        if cart.bundle:
            sizes = await self._volume.bundles.stat_members(cart, files)
            volume_bytes = await self._volume.bundles.size(cart)
        else:
            sizes = await self._found(cart, files)
            volume_bytes = _sum(sizes)
        if sizes is None or volume_bytes is None or len(sizes) < len(files):
            return False
        measured = [(one.position, one.size, one.mtime) for one in sizes]
        await self._store.progress.record_measured(
            cart.id, measured, bytes_total=_sum(sizes), volume_bytes=volume_bytes
        )
        return True

    async def import_all(self) -> None:
        """Record the sizes of Pacifica's carts, ready or in error, so that their space is counted.

        A ready cart that is missing on the volume is kept until it is requested.
        """
        for cart in await self._store.carts.unmeasured():
            if cart.status == CartStatus.ERROR:
                rest = 0
                async for files in self._pages(cart):
                    rest += _sum(await self._found(cart, files))
                await self._store.progress.record_measured(
                    cart.id, [], bytes_total=None, volume_bytes=rest
                )
            elif not await self.import_cart(cart):
                log.info("{cart} is not on the volume", cart=cart)

    async def _found(self, cart: Cart, files: list[CartFile]) -> list[FileFacts]:
        found = await self._volume.verification.stat_files(cart, files)
        return [one for one in found if one is not None]

    async def damaged_positions(
        self, cart: Cart, damaged: Container[int] = (), unreadable: str | None = None
    ) -> Sequence[int]:
        """Return the positions of files that are missing on the volume or have a wrong size.

        Includes those known to be ``damaged`` and the one at the path ``unreadable``.  All
        positions for a damaged bundle: its files are in one tar, which is written again.  The
        failed files of a partial cart are not included: they are on no volume.
        """
        if cart.has_tar and cart.status == CartStatus.READY:
            known = unreadable is not None or damaged
            return range(cart.files_total) if known or not await self._has_its_tar(cart) else ()
        lost = array("q")
        async for page in self._pages(cart):
            files = _expected_files(cart, page)
            found = await self._volume.verification.stat_files(cart, files)
            lost.extend(
                file.position
                for file, there in zip(files, found, strict=True)
                if there is None
                or there.size != file.size
                or file.position in damaged
                or file.path == unreadable
            )
        return range(cart.files_total) if cart.has_tar and damaged else lost

    async def is_intact(self, cart: Cart) -> bool:
        """Whether the files of a ready cart are on the volume, compared by names and sizes."""
        return (
            await self._has_its_tar(cart)
            if cart.has_tar
            else not await self.damaged_positions(cart)
        )

    async def _has_its_tar(self, cart: Cart) -> bool:
        """Whether a ready bundle has a tar of the recorded size."""
        measured = cart.bytes_total is not None
        return measured and await self._volume.bundles.size(cart) == cart.volume_bytes

    async def restage(
        self,
        cart: Cart,
        damaged: Sequence[int] = (),
        *,
        unreadable: str | None = None,
        retry_failed: bool = False,
    ) -> None:
        """Restage a damaged cart, or one in error: fetch its damaged files again.

        These are files that are missing or have a wrong size, those at the positions ``damaged``,
        and the one at the path ``unreadable``, or the bundle that contains it.  The files that have
        failed are tried again with them; ``retry_failed``: also those of a partial cart that is not
        damaged, which stays as it is otherwise.

        :raises VolumeNotWritable: a ready cart is kept, as nothing can be written; logged once for
            all carts.
        :raises Unavailable: the same, for a partial cart that is not damaged.
        """
        current = await self._store.carts.cart(cart.id)
        if current is None or current.status in (*UNFINISHED, CartStatus.DELETED):
            return  # another download has restaged it, or it was deleted
        lost = await self.damaged_positions(current, frozenset(damaged), unreadable)
        self._tar_indexes.invalidate(cart.id)
        # A bundle without files may be damaged, too.
        whole = not lost and (not current.has_tar or await self._has_its_tar(current))
        if current.status == CartStatus.READY:
            if whole and not (retry_failed and current.is_partial):
                return  # it has been repaired meanwhile
            if whole:
                await self._check_retryable()
            else:
                await self._check_writable(current)
                if self._restaged_too_often(cart.id):
                    await self._fail_permanently(current)
                    return
        log.info(
            "{cart}: restaging, fetching {lost} of {total} files again",
            cart=cart,
            lost=len(lost) + (current.files_failed if current.is_partial else 0),
            total=cart.files_total,
        )
        if await self._store.progress.restage(cart.id, lost=lost, now=self._now()):
            self._stage(cart.id)

    async def _check_retryable(self) -> None:
        """Raise Unavailable if the volume is not writable: the cart would end in error."""
        try:
            await self._volume.check_writable()
        except VolumeNotWritable as error:
            raise Unavailable(
                f"The volume is not writable ({error.reason}): the cart stays as it is; retry later"
            ) from error

    async def _check_writable(self, cart: Cart) -> None:
        try:
            await self._volume.check_writable()
        except VolumeNotWritable as error:
            if self._write_error != error.reason:
                self._write_error = error.reason
                log.error(
                    "The volume is not writable: {reason}. Damaged carts, such as {cart}, stay"
                    " ready and are not sent until it is. Check the disk",
                    reason=error.reason,
                    cart=cart,
                )
            raise
        if self._write_error is not None:
            self._write_error = None
            log.info("The volume is writable again")

    def _restaged_too_often(self, cart_id: int) -> bool:
        """Whether the cart was restaged too often recently; if not, count one more."""
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
            f"Its files were damaged on the volume {MAX_RESTAGES + 1} times within"
            f" {RESTAGE_WINDOW / 60:.0f} minutes, although they were fetched again each time:"
            " check the volume's disk, then restage the cart with cartd-cmd fixit"
        )
        if await self._store.progress.record_unrecoverable(cart.id, message, now=self._now()):
            log.error(
                "{cart} is in error: {message}",
                cart=cart,
                message=message,
            )

    async def _pages(self, cart: Cart) -> AsyncIterator[list[CartFile]]:
        after = -1
        while files := await self._store.carts.files(cart.id, after=after, limit=PAGE):
            yield files
            after = files[-1].position

    async def _all_files(self, cart: Cart) -> list[CartFile]:
        return [file async for files in self._pages(cart) for file in files]


def _expected_files(cart: Cart, files: list[CartFile]) -> list[CartFile]:
    """Return those of the files that should be on the volume.

    For a cart in error these are all: they are fetched when it is restaged.
    """
    if not cart.is_partial:
        return files
    return [file for file in files if file.status is not FileStatus.ERROR]


def _sum(files: list[FileFacts]) -> int:
    return sum(file.size for file in files)


def may_have_files(cart: Cart) -> bool:
    """Whether files may be on the volume that were fetched for this cart.

    If not, files in its directory are of another cart with the same id: the database was restored.
    True for Pacifica's carts, whose progress is unknown.
    """
    return cart.files_staged > 0 or cart.bytes_total is not None or cart.fingerprint is None


async def invalidate_unreadable(store: Store, cart_id: int, holder: str, path: str) -> None:
    """Mark the file at ``path``, which the disk fails to read, to be fetched again."""
    after = -1
    while files := await store.carts.files(cart_id, after=after):
        after = files[-1].position
        if found := [file.position for file in files if file.path == path]:
            await store.progress.invalidate_files(cart_id, holder, found)


async def invalidate_missing(
    store: Store, volume: Volume, cart: Cart, holder: str, page: Callable[[], int]
) -> Cart:
    """Mark staged files of ``cart`` that are missing or have a wrong size to be fetched again.

    Names and sizes are compared, ``page()`` files at a time.  Return the updated cart.

    :raises LeaseLost: another process has taken over the cart.
    """
    after, lost = -1, 0
    while files := await store.carts.files(cart.id, after=after, limit=page()):
        after = files[-1].position
        staged = [file for file in files if file.status is FileStatus.STAGED]
        found = await volume.verification.stat_files(cart, staged)
        missing = [
            file.position
            for file, there in zip(staged, found, strict=True)
            if there is None or there.size != file.size
        ]
        if missing:
            await store.progress.invalidate_files(cart.id, holder, missing)
            lost += len(missing)
    if not lost:
        return cart
    log.warn("{cart}: {n} staged files are missing on the volume", cart=cart, n=lost)
    return await store.carts.cart(cart.id) or cart


class Orphans:
    """Finds and removes directories on the volume that belong to no cart of the store.

    They appear when the database is restored from a backup, which lacks the carts posted since.
    Files that cartd did not create are ignored.
    """

    def __init__(self, carts: Carts, volume: Volume) -> None:
        self._carts = carts
        self._volume = volume

    async def find(self) -> list[Orphan]:
        """Return the current orphans; a cart that is posted later may get the id of one of them."""
        there = await self._volume.orphans.cart_ids()
        return await self._volume.orphans.find(sorted(await self._carts.unknown_among(there)))

    async def remove(self, orphans: Sequence[Orphan]) -> None:
        """Remove those that are still orphans.

        Their ids cannot be given to new carts any more, so that no new cart loses its files.
        """
        for first in range(0, len(orphans), ORPHANS_BATCH):
            ids = [orphan.cart_id for orphan in orphans[first : first + ORPHANS_BATCH]]
            unknown = await self._carts.retire_unknown_ids(ids)
            aside = await self._volume.orphans.set_aside(sorted(unknown))
            await self._volume.orphans.remove_aside(aside)

    async def warn(self) -> None:
        """Log a warning if there are orphans."""
        if orphans := await self.find():
            log.warn(
                "{number} directories on the volume, such as {first}, belong to no cart of this"
                " database and take {size} bytes; cartd-cmd verify --repair removes them",
                number=len(orphans),
                first=orphans[0].cart_id,
                size=sum(orphan.size for orphan in orphans),
            )
