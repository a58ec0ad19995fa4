"""Carts that leave the volume: eviction, deletion, removal, and pruning of their rows.

An eviction is recorded in the cart's row before its first file is removed.  Until then the cart
stays ready; an eviction that a crash has interrupted is found by this record.

The rows of a cart are kept as history for a retention time.  A cart with a ``removed_date`` never
returns, and no row refers to it, so nothing else changes its rows: pruning is a short transaction
per batch, and does not take :func:`cartd.store.database.lock_writers`.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import BindParameter, bindparam, delete, exists, func, null, select, update

from cartd.model import Cart, CartStatus, FileStatus
from cartd.store.database import Database, lock_writers
from cartd.store.durability import clear_dirty
from cartd.store.labels import delete_labels
from cartd.store.space import transfer_ownership_between
from cartd.store.tables import FINISHED, cart, date_of, dirty_files, file

FILE_BATCH = 5000
"""Files of a cart per transaction, which takes less than a second."""
PRUNE_FILE_BATCH = 5000
PRUNE_CART_BATCH = 500
"""Rows per transaction."""

_NOT_DELETED = cart.c.deleted_date.is_(None)
_BY_ID = cart.c.id == bindparam("cart_id")
_BEGIN_EVICTION = (
    update(cart)
    .where(
        _BY_ID,
        _NOT_DELETED,
        cart.c.status.in_(FINISHED),
        cart.c.used_date <= bindparam("seen"),
        cart.c.evicting.is_(None),
    )
    .values(evicting=bindparam("token"))
)
_END_EVICTION = (
    update(cart).where(_BY_ID, cart.c.evicting == bindparam("token")).values(evicting=null())
)
_EVICTING = select(cart.c.id, cart.c.evicting).where(_NOT_DELETED, cart.c.evicting.is_not(None))
_DELETE = (
    update(cart)
    .where(_BY_ID, _NOT_DELETED)
    .values(
        status=CartStatus.DELETED.value,
        deleted_date=bindparam("date"),
        updated_date=bindparam("date"),
        lease_holder=None,
        lease_until=None,
        waits_since=None,
        waits_for=None,
        tape_since=None,
        tape_files=None,
        evicting=None,
    )
)
_PENDING_REMOVAL = (cart.c.deleted_date.is_not(None), cart.c.removed_date.is_(None))
_PENDING_REMOVAL_IDS = select(cart.c.id).where(*_PENDING_REMOVAL)
_OWNED = select((cart.c.volume_bytes - cart.c.bytes_linked).label("owned")).where(
    _BY_ID, *_PENDING_REMOVAL
)
_REMOVED = (
    update(cart)
    .where(_BY_ID)
    .values(
        removed_date=bindparam("date"),
        files_staged=0,
        bytes_staged=0,
        volume_bytes=0,
        bytes_linked=0,
    )
)
_SUBTRACT_TRANSFERRED = (
    update(cart).where(_BY_ID).values(volume_bytes=cart.c.volume_bytes - bindparam("size"))
)
_LAST = select(func.max(file.c.position).label("position")).where(
    file.c.cart_id == bindparam("of_cart")
)
_DELETE_FILES = (
    update(file)
    .where(
        file.c.cart_id == bindparam("of_cart"),
        file.c.position.between(bindparam("first"), bindparam("last")),
    )
    .values(status=FileStatus.DELETED.value, linked_to=None)
)
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


class Removals:
    """Statements for eviction, deletion and retention."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def begin_eviction(self, seen: Cart, token: str) -> bool:
        """Record the eviction of the cart, if it still is as it was ``seen``.

        Returns False and writes nothing if it was used, restaged or deleted meanwhile, or is being
        evicted already.  A later post creates a new cart.
        """
        values = {"cart_id": seen.id, "seen": date_of(seen.used), "token": token}
        async with self._database.transaction() as transaction:
            return bool(await transaction.execute(_BEGIN_EVICTION, values))

    async def end_eviction(self, cart_id: int, token: str) -> None:
        """Cancel the eviction: no file was removed.  An eviction with another token is kept."""
        async with self._database.transaction() as transaction:
            await transaction.execute(_END_EVICTION, {"cart_id": cart_id, "token": token})

    async def evicting(self) -> dict[int, str]:
        """Return the carts being evicted, with the tokens of their evictions."""
        return {row.id: row.evicting for row in await self._database.rows(_EVICTING)}

    async def mark_deleted(self, cart_id: int, now: float) -> bool:
        """Mark the cart as deleted, which ends its lease; return False if it was deleted already.

        Its space counts until it has been removed from the volume.
        """
        async with self._database.transaction() as transaction:
            await lock_writers(transaction)
            await clear_dirty(transaction, cart_id)
            deleted = await transaction.execute(_DELETE, {"cart_id": cart_id, "date": date_of(now)})
            await delete_labels(transaction, cart_id)  # after the cart: its row is locked now
            return bool(deleted)

    async def record_removed(self, cart_id: int, now: float) -> int:
        """Record that a deleted cart is gone from the volume; return the bytes freed by that.

        Returns 0 if it was recorded before.  Bytes that others share are transferred to them.  The
        files are recorded in many short transactions; if the process dies in between, repeat it.
        """
        [last] = await self._database.rows(_LAST, {"of_cart": cart_id})
        for first in range(0, -1 if last.position is None else last.position + 1, FILE_BATCH):
            if not await self._record_files_removed(cart_id, first):
                return 0
        async with self._database.transaction() as transaction:
            await lock_writers(transaction)
            rows = await transaction.rows(_OWNED, {"cart_id": cart_id})
            if not rows:
                return 0
            await transaction.execute(_REMOVED, {"cart_id": cart_id, "date": date_of(now)})
        return int(rows[0].owned)

    async def prune_removed(self, before: float) -> int:
        """Delete one batch of rows of carts that were removed before a Unix time; return its size.

        The oldest first, and a cart's row after those of its files.  Returns 0 if none is left.
        """
        oldest = {"before": date_of(before), "count": PRUNE_CART_BATCH}
        ids = [row.id for row in await self._database.rows(_OLDEST, oldest)]
        if not ids:
            return 0
        async with self._database.transaction() as transaction:
            carts = {"carts": ids}
            deleted = await transaction.execute(_FILES, {**carts, "count": PRUNE_FILE_BATCH})
            if deleted < PRUNE_FILE_BATCH:
                await transaction.execute(_UNSYNCED, carts)
                # Files of a concurrent batch of another process may remain.
                deleted += await transaction.execute(_CARTS, carts)
        return deleted

    async def _record_files_removed(self, cart_id: int, first: int) -> bool:
        """Record one batch of files of a deleted cart; False if the cart was recorded before."""
        files = {"of_cart": cart_id, "first": first, "last": first + FILE_BATCH - 1}
        async with self._database.transaction() as transaction:
            await lock_writers(transaction)
            if not await transaction.rows(_OWNED, {"cart_id": cart_id}):
                return False
            transferred = await transfer_ownership_between(transaction, **files)
            if transferred:
                # Each byte still counts once.
                await transaction.execute(
                    _SUBTRACT_TRANSFERRED, {"cart_id": cart_id, "size": transferred}
                )
            await transaction.execute(_DELETE_FILES, files)
        return True

    async def pending_removal(self) -> set[int]:
        """Return the deleted carts that are not removed from the volume yet."""
        return {row.id for row in await self._database.rows(_PENDING_REMOVAL_IDS)}
