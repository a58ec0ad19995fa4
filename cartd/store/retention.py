"""Prune the rows of carts that are gone from the volume, after a retention time.

Strategy: a cart with a ``removed_date`` never returns, and no row refers to it, so nothing else
changes its rows.  Each call is a short transaction that deletes one batch, and does not take
:func:`cartd.store.byte_ownership.lock_writers`.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import BindParameter, bindparam, delete, exists, select

from cartd.store.database import Database
from cartd.store.rows import date_of
from cartd.store.tables import cart, dirty_files, file

FILE_BATCH = 5000
CART_BATCH = 500
"""Rows per transaction."""

_OLDEST = (
    select(cart.c.id)
    .where(cart.c.removed_date < bindparam("before"))
    .order_by(cart.c.removed_date)
    .limit(bindparam("count"))
)
_AMONG: BindParameter[Any] = bindparam("carts", expanding=True)
_FILES = delete(file).where(
    file.c.id.in_(select(file.c.id).where(file.c.cart_id.in_(_AMONG)).limit(bindparam("count")))
)
_UNSYNCED = delete(dirty_files).where(dirty_files.c.cart_id.in_(_AMONG))
_CARTS = delete(cart).where(cart.c.id.in_(_AMONG), ~exists().where(file.c.cart_id == cart.c.id))


class Retention:
    """Statements that delete history."""

    _database: Database

    async def prune_removed(self, before: float) -> int:
        """Delete one batch of rows of carts that were removed before a Unix time; return its size.

        The oldest first, and a cart's row after those of its files.  Returns 0 if none is left.
        """
        oldest = {"before": date_of(before), "count": CART_BATCH}
        ids = [row.id for row in await self._database.rows(_OLDEST, oldest)]
        if not ids:
            return 0
        async with self._database.transaction() as transaction:
            carts = {"carts": ids}
            deleted = await transaction.execute(_FILES, {**carts, "count": FILE_BATCH})
            if deleted < FILE_BATCH:
                await transaction.execute(_UNSYNCED, carts)
                # Files of a concurrent batch of another process may remain.
                deleted += await transaction.execute(_CARTS, carts)
        return deleted
