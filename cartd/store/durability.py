"""Staged files of which nobody knows yet that the disk has them, and what becomes of them.

Strategy: no file is waited for until the disk has it.  The transaction that records files as staged
also notes them in a row of ``dirty_files``, which goes when the file system has been synced.
So these rows name whatever a power failure can damage.  What a process leaves there that has died
is to be verified: it waits again, and who stages the cart hashes it in its place.

A process that dies alone takes nothing with it: what it wrote is in the system's memory.  So a
process says in ``page_cache`` which memory that is, and who has the same one takes such rows over
as its own.  While a process syncs it takes that back, and after a sync that failed: of what could
not be written the system tells once, and who is killed then may be the only one who was told.

The rows of an unfinished cart are its holder's: whoever takes one over doubts at first what others
have recorded of it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import msgspec
from sqlalchemy import (
    DateTime,
    Text,
    bindparam,
    case,
    delete,
    insert,
    null,
    or_,
    select,
    union,
    update,
)

from cartd.model import CartStatus
from cartd.store.batching import BATCH
from cartd.store.byte_ownership import lock_writers
from cartd.store.database import Database, Transaction
from cartd.store.invalidation import invalidate, invalidate_next
from cartd.store.rows import FINISHED, date_of
from cartd.store.tables import cart, dirty_files, page_cache

DELETE_BATCH = 500
"""Rows that are deleted at once."""
DirtyRows = dict[int, list[int]]
"""The ids of rows, by the carts that they are of."""

_MARK = insert(dirty_files).from_select(
    ["cart_id", "positions", "holder", "lease_until"],
    select(cart.c.id, bindparam("at", type_=Text), cart.c.lease_holder, cart.c.lease_until).where(
        cart.c.id == bindparam("of_cart")
    ),
)
_CLEAR = delete(dirty_files).where(dirty_files.c.cart_id == bindparam("of_cart"))
_UNLOCKED = (
    select(dirty_files.c.id)
    .where(dirty_files.c.holder == bindparam("by"))
    .with_for_update(skip_locked=True)
)
_RENEW = (
    update(dirty_files)
    .where(dirty_files.c.id.in_(_UNLOCKED))
    .values(lease_until=bindparam("until"))
)
_DIRTY = select(dirty_files.c.id, dirty_files.c.cart_id).order_by(dirty_files.c.id)
_HOLDERS = union(select(dirty_files.c.holder), select(page_cache.c.holder))
_SAME_PAGE_CACHE = select(page_cache.c.holder).where(page_cache.c.cache == bindparam("cache"))
_TAKE_OVER = (
    update(dirty_files)
    .where(dirty_files.c.holder != bindparam("by"), dirty_files.c.holder.in_(_SAME_PAGE_CACHE))
    .values(holder=bindparam("by"), lease_until=bindparam("until"))
)
_TAKE_OVER_CART = _TAKE_OVER.where(dirty_files.c.cart_id == bindparam("of_cart"))
_TAKE_OVER_ABANDONED = _TAKE_OVER.where(
    or_(
        dirty_files.c.holder.in_(bindparam("dead", expanding=True)),
        dirty_files.c.lease_until <= bindparam("now"),
    )
)
_CLEAR_PAGE_CACHES = delete(page_cache).where(
    page_cache.c.holder.in_(bindparam("holders", expanding=True))
)
_RECORD_PAGE_CACHE = insert(page_cache)
_BY_HOLDER = _DIRTY.where(dirty_files.c.holder == bindparam("holder"))
_BY_OTHERS = _DIRTY.where(
    dirty_files.c.cart_id == bindparam("cart_id"), dirty_files.c.holder != bindparam("holder")
)
_ABANDONED = _DIRTY.where(
    dirty_files.c.holder != bindparam("holder"),
    or_(
        dirty_files.c.holder.in_(bindparam("dead", expanding=True)),
        dirty_files.c.lease_until <= bindparam("now"),
    ),
)
_AMONG = dirty_files.c.id.in_(bindparam("ids", expanding=True))
_DELETE = delete(dirty_files).where(_AMONG)
_POSITIONS = select(dirty_files.c.positions, dirty_files.c.holder).where(
    dirty_files.c.cart_id == bindparam("cart_id"), _AMONG
)
_IS_FINISHED = cart.c.status.in_(FINISHED)
_IS_HELD = cart.c.lease_holder.in_(bindparam("holders", expanding=True))
_RESTAGE = (
    update(cart)
    .where(cart.c.id == bindparam("of_cart"), cart.c.deleted_date.is_(None))
    .values(
        status=case(
            (cart.c.status == CartStatus.WAITING.value, cart.c.status),
            else_=CartStatus.STAGING.value,
        ),
        error="",
        updated_date=case(
            (_IS_FINISHED, bindparam("date", type_=DateTime)), else_=cart.c.updated_date
        ),
        # They may be alive after all, and in the middle of it.
        lease_holder=case((_IS_HELD, null()), else_=cart.c.lease_holder),
        lease_until=case((_IS_HELD, null()), else_=cart.c.lease_until),
    )
)
_IS_BUNDLED = select(cart.c.bundle).where(cart.c.id == bindparam("of_cart"))


class Durability:
    """The part of the store that knows what is staged, but may not be on the disk."""

    _database: Database

    async def dirty_rows(self, holder: str) -> DirtyRows:
        """What ``holder`` has staged since it was last told to be on the disk."""
        return _by_cart(await self._database.rows(_BY_HOLDER, {"holder": holder}))

    async def dirty_holders(self) -> set[str]:
        """Everyone who has staged what may not be on the disk, or could have."""
        return {row.holder for row in await self._database.rows(_HOLDERS)}

    async def dirty_rows_of_others(self, cart_id: int, holder: str) -> DirtyRows:
        """What anybody but ``holder`` has recorded of the cart."""
        among = {"cart_id": cart_id, "holder": holder}
        return _by_cart(await self._database.rows(_BY_OTHERS, among))

    async def abandoned_dirty_rows(
        self, holder: str, *, dead: Collection[str], now: float
    ) -> DirtyRows:
        """What others than ``holder`` have left who are ``dead``, or whose leases have run out."""
        parameters = {"holder": holder, "dead": list(dead), "now": now}
        return _by_cart(await self._database.rows(_ABANDONED, parameters))

    async def record_synced(
        self, rows: Sequence[int], *, holder: str = "", cache: str | None = None
    ) -> None:
        """The disk has what these rows name.

        All else that ``holder`` has written is in the memory ``cache`` then, if that is known.
        """
        async with self._database.transaction() as transaction:
            for first in range(0, len(rows), DELETE_BATCH):
                await transaction.execute(_DELETE, {"ids": rows[first : first + DELETE_BATCH]})
            if cache is not None:
                await transaction.execute(_CLEAR_PAGE_CACHES, {"holders": [holder]})
                await transaction.execute(_RECORD_PAGE_CACHE, {"holder": holder, "cache": cache})

    async def forget_page_cache(self, holder: str) -> None:
        """Nobody knows what the system's memory has of what ``holder`` has written."""
        async with self._database.transaction() as transaction:
            await transaction.execute(_CLEAR_PAGE_CACHES, {"holders": [holder]})

    async def take_over_dirty_rows(
        self, holder: str, cache: str, *, dead: Collection[str], now: float, until: float
    ) -> int:
        """Let ``holder`` have the rows of the ``dead``, and of those whose leases have run out.

        Only what is in the memory ``cache``: the disk will have it.  How many rows that were.
        """
        parameters = {"by": holder, "cache": cache, "until": until, "dead": list(dead), "now": now}
        async with self._database.transaction() as transaction:
            await lock_writers(transaction)
            taken_over = await transaction.execute(_TAKE_OVER_ABANDONED, parameters)
            await transaction.execute(_CLEAR_PAGE_CACHES, {"holders": list(dead)})
        return taken_over

    async def take_over_dirty_rows_of_cart(
        self, cart_id: int, holder: str, cache: str, *, until: float
    ) -> None:
        """As :meth:`take_over_dirty_rows`, for all rows of the cart, of dead and live holders."""
        parameters = {"of_cart": cart_id, "by": holder, "cache": cache, "until": until}
        async with self._database.transaction() as transaction:
            await lock_writers(transaction)
            await transaction.execute(_TAKE_OVER_CART, parameters)

    async def revalidate(self, cart_id: int, rows: Sequence[int], *, now: float) -> int:
        """Let the files wait again that these rows of the cart name; how many those are.

        A cart that was ready, or in error, is in staging then; who recorded the rows holds it no
        longer.  Of a bundled cart all files wait: some may be in the tar that was to be written.
        Rows that have gone meanwhile name nothing.

        Each row, and each batch of a bundled cart's files, has a transaction of its own, which puts
        the cart back: in between, nobody makes it ready, or others' claims of it end with the next.
        What a process that dies has not come to is found by its rows; those of a bundled cart go
        last, so that all of it is done again.
        """
        number = 0
        bundled = await self._database.rows(_IS_BUNDLED, {"of_cart": cart_id})
        if bundled and bundled[0][0]:
            return await self._revalidate_bundled(cart_id, rows, now)
        for row in rows:
            async with self._database.transaction() as transaction:
                await lock_writers(transaction)
                for positions in await _restage(transaction, cart_id, [row], now):
                    number += len(positions)
                    await invalidate(transaction, cart_id, positions)
                await transaction.execute(_DELETE, {"ids": [row]})
        return number

    async def _revalidate_bundled(self, cart_id: int, rows: Sequence[int], now: float) -> int:
        after: int | None = -1
        while True:
            async with self._database.transaction() as transaction:
                await lock_writers(transaction)
                dirty = await _restage(transaction, cart_id, rows, now)
                if dirty and after is not None:
                    after = await invalidate_next(transaction, cart_id, after=after, limit=BATCH)
                if not dirty or after is None:
                    # Without rows, somebody else has done it all.
                    await transaction.execute(_DELETE, {"ids": list(rows)})
                    return sum(map(len, dirty))


async def _restage(
    transaction: Transaction, cart_id: int, rows: Sequence[int], now: float
) -> list[list[int]]:
    """Put the cart back to staging for what these rows of it name, which is given.

    Nothing is if they have gone, or the cart has.
    """
    dirty = await transaction.rows(_POSITIONS, {"cart_id": cart_id, "ids": list(rows)})
    holders = list({row.holder for row in dirty})
    back = {"of_cart": cart_id, "date": date_of(now), "holders": holders}
    if not dirty or not await transaction.execute(_RESTAGE, back):
        return []
    return [msgspec.json.decode(row.positions, type=list[int]) for row in dirty]


async def mark_dirty(transaction: Transaction, cart_id: int, positions: Sequence[int]) -> None:
    """The holder of the cart has staged these files, and nobody knows whether the disk has them."""
    at = msgspec.json.encode(positions).decode()
    await transaction.execute(_MARK, {"of_cart": cart_id, "at": at})


async def clear_dirty(transaction: Transaction, cart_id: int) -> None:
    """Nothing of the cart's tree matters any more."""
    await transaction.execute(_CLEAR, {"of_cart": cart_id})


async def renew_dirty_rows(transaction: Transaction, holder: str, until: float) -> None:
    """``holder`` is alive: nobody but it need care for what it has staged."""
    await transaction.execute(_RENEW, {"by": holder, "until": until})


def _by_cart(rows: Sequence[tuple[int, int]]) -> DirtyRows:
    dirty: DirtyRows = {}
    for row, cart_id in rows:
        dirty.setdefault(cart_id, []).append(row)
    return dirty
