"""Which ids are those of carts, for what is found on the volume under them."""

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
    """The part of the store that is asked for many ids at once."""

    _database: Database

    async def deleted_among(self, cart_ids: Sequence[int]) -> set[int]:
        """Those of ``cart_ids`` that were deleted; one without a row is not among them."""
        deleted: set[int] = set()
        for batch in batched(iter(cart_ids), BATCH):
            rows = await self._database.rows(_DELETED, {"cart_ids": batch})
            deleted.update(row.id for row in rows)
        return deleted

    async def unknown_among(self, cart_ids: Sequence[int]) -> set[int]:
        """Those of ``cart_ids`` that no cart has or had."""
        unknown = set(cart_ids)
        for batch in batched(iter(cart_ids), BATCH):
            rows = await self._database.rows(_KNOWN, {"cart_ids": batch})
            unknown.difference_update(row.id for row in rows)
        return unknown

    async def retire_unknown_ids(self, cart_ids: Sequence[int]) -> set[int]:
        """As :meth:`unknown_among`; and no cart ever gets one of these ids from now on."""
        async with self._database.transaction() as transaction:
            await transaction.lock_table(cart)
            rows = await transaction.rows(_KNOWN, {"cart_ids": cart_ids})
            unknown = set(cart_ids).difference(row.id for row in rows)
            if unknown:
                await transaction.advance_ids(cart, max(unknown))
        return unknown
