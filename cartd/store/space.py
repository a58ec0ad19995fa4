"""Space used by the carts on the volume, according to the tables."""

from __future__ import annotations

from sqlalchemy import String, case, cast, func, select, union_all

from cartd.eviction.policy import Candidate, SharedBytes
from cartd.store.database import Database, Transaction
from cartd.store.rows import FINISHED, UNFINISHED, time_of
from cartd.store.tables import cart, file

_NOT_DELETED = cart.c.deleted_date.is_(None)
_UNWRITTEN = case(
    (
        cart.c.status.in_(UNFINISHED) & (cart.c.volume_bytes > cart.c.bytes_staged),
        cart.c.volume_bytes - cart.c.bytes_staged,
    ),
    else_=0,
)
_OWNED = cart.c.volume_bytes - cart.c.bytes_linked
_COUNTED = (_OWNED.label("owned"), _UNWRITTEN.label("unwritten"), cart.c.bytes_linked)
# Two queries with an index each: deleted carts are kept as history.
_ON_VOLUME = union_all(
    select(*_COUNTED).where(_NOT_DELETED),
    select(*_COUNTED).where(cart.c.deleted_date.is_not(None), cart.c.removed_date.is_(None)),
).subquery()
_USAGE = select(func.sum(_ON_VOLUME.c.owned), func.sum(_ON_VOLUME.c.unwritten))
_EVICTABLE = select(cart.c.id, _OWNED, cart.c.used_date).where(
    _NOT_DELETED, cart.c.status.in_(FINISHED), cart.c.volume_bytes > 0, cart.c.evicting.is_(None)
)
_LINKED = select(func.sum(_ON_VOLUME.c.bytes_linked))
# One row per shared file, then one for all files shared by the same carts.
_links = (
    select(
        file.c.linked_to,
        func.max(file.c.size).label("size"),
        func.aggregate_strings(cast(file.c.cart_id, String), ",").label("carts"),
    )
    .where(file.c.linked_to.is_not(None))
    .group_by(file.c.linked_to)
    .subquery()
)
_SHARED_BYTES = (
    select(file.c.cart_id, _links.c.carts, func.sum(_links.c.size))
    .join(_links, _links.c.linked_to == file.c.id)
    .group_by(file.c.cart_id, _links.c.carts)
)


async def usage_in(database: Database | Transaction) -> tuple[int, int]:
    """As :meth:`Space.usage`."""
    [(taken, unwritten)] = await database.rows(_USAGE)
    return int(taken or 0), int(unwritten or 0)


class Space:
    """Queries for used and shared space."""

    _database: Database

    async def usage(self) -> tuple[int, int]:
        """Return the bytes that all carts use or have reserved, and those not yet written.

        Bytes shared by several carts count once; deleted carts count until they are removed.
        """
        return await usage_in(self._database)

    async def evictable(self) -> list[Candidate]:
        """Return the carts that may be evicted: finished, with bytes on the volume."""
        rows = await self._database.rows(_EVICTABLE)
        return [Candidate(cart_id, size, time_of(used)) for cart_id, size, used in rows]

    async def shared_bytes(self) -> list[SharedBytes]:
        """Return which carts share bytes; cheap if none do."""
        [(linked,)] = await self._database.rows(_LINKED)
        if not linked:
            return []
        return [
            SharedBytes(owner, frozenset(map(int, carts.split(","))), int(size))
            for owner, carts, size in await self._database.rows(_SHARED_BYTES)
        ]
