"""What the carts take of the volume, as the tables know it."""

from __future__ import annotations

from sqlalchemy import case, func, select

from cartd.eviction import Candidate
from cartd.store.database import Database
from cartd.store.rows import FINISHED, UNFINISHED, time_of
from cartd.store.tables import cart

_LIVING = cart.c.deleted_date.is_(None)
_UNWRITTEN = case(
    (
        cart.c.status.in_(UNFINISHED) & (cart.c.volume_bytes > cart.c.bytes_staged),
        cart.c.volume_bytes - cart.c.bytes_staged,
    ),
    else_=0,
)
_USAGE = select(func.sum(cart.c.volume_bytes), func.sum(_UNWRITTEN)).where(_LIVING)
_EVICTABLE = select(cart.c.id, cart.c.volume_bytes, cart.c.used_date).where(
    _LIVING, cart.c.status.in_(FINISHED), cart.c.volume_bytes > 0
)


class Space:
    """The part of the store that knows how full the volume is."""

    _database: Database

    async def usage(self) -> tuple[int, int]:
        """Bytes that all living carts take or were promised, and those still to be written."""
        [(taken, unwritten)] = await self._database.rows(_USAGE)
        return int(taken or 0), int(unwritten or 0)

    async def evictable(self) -> list[Candidate]:
        """The carts that could go: finished, and with something on the volume."""
        rows = await self._database.rows(_EVICTABLE)
        return [Candidate(cart_id, size, time_of(used)) for cart_id, size, used in rows]
