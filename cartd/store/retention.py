"""Rows of carts that have gone from the volume: kept as history for a while, then deleted.

Strategy: what has a ``removed_date`` never comes back, and no row refers to it any more, so nobody
else touches it.  Each call is a short transaction that deletes a batch of rows, without the turn
that those take who change what several carts share (see ``owners``).
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import BindParameter, bindparam, delete, exists, select

from cartd.store.database import Database
from cartd.store.rows import date_of
from cartd.store.tables import cart, dirty_files, file

FILE_BATCH = 5000
CART_BATCH = 500
"""Rows of one transaction."""

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
    """The part of the store that forgets."""

    _database: Database

    async def prune_removed(self, before: float) -> int:
        """Delete some of what is kept of carts that had gone from the volume by a Unix time.

        The longest gone first, and a cart's own row after those of its files.  How many rows there
        were; none if that is all.
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
                # Of another process's batch that is under way, files may be left.
                deleted += await transaction.execute(_CARTS, carts)
        return deleted
