"""Orphans: directories on the volume that belong to no cart of the store.

They appear when the database is restored from a backup, which lacks the carts posted since.
"""

from __future__ import annotations

from collections.abc import Sequence

from twisted.logger import Logger

from cartd.store import Carts
from cartd.volume import Volume
from cartd.volume.remove import Orphan

BATCH = 100
"""Directories that are renamed before they are removed."""

log = Logger()


class Orphans:
    """Finds and removes orphans; files that cartd did not create are ignored."""

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
        for first in range(0, len(orphans), BATCH):
            ids = [orphan.cart_id for orphan in orphans[first : first + BATCH]]
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
