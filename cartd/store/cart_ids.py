"""Which ids belong to carts, for directories found on the volume."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import bindparam, select

from cartd.store.batching import BATCH, batched
from cartd.store.database import Database
from cartd.store.tables import cart

_DELETED = select(cart.c.id).where(
    cart.c.id.in_(bindparam("cart_ids", expanding=True)), cart.c.deleted_date.is_not(None)
)
_KNOWN = select(cart.c.id).where(cart.c.id.in_(bindparam("cart_ids", expanding=True)))


class CartIds:
    """Queries for many ids at once."""

    _database: Database

    async def deleted_among(self, cart_ids: Sequence[int]) -> set[int]:
        """Return the ids of deleted carts; ids without a row are not included."""
        deleted: set[int] = set()
        for batch in batched(iter(cart_ids), BATCH):
            rows = await self._database.rows(_DELETED, {"cart_ids": batch})
            deleted.update(row.id for row in rows)
        return deleted

    async def unknown_among(self, cart_ids: Sequence[int]) -> set[int]:
        """Return the ids that no cart has or had."""
        unknown = set(cart_ids)
        for batch in batched(iter(cart_ids), BATCH):
            rows = await self._database.rows(_KNOWN, {"cart_ids": batch})
            unknown.difference_update(row.id for row in rows)
        return unknown

    async def retire_unknown_ids(self, cart_ids: Sequence[int]) -> set[int]:
        """As :meth:`unknown_among`, and no cart will ever get one of these ids."""
        async with self._database.transaction() as transaction:
            await transaction.lock_table(cart)
            rows = await transaction.rows(_KNOWN, {"cart_ids": cart_ids})
            unknown = set(cart_ids).difference(row.id for row in rows)
            if unknown:
                await transaction.advance_ids(cart, max(unknown))
        return unknown
