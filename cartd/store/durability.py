"""Staged files that may be damaged: dirty rows, revalidation, invalidation, verification.

Strategy: a dirty row names staged files that may not have reached the disk.  Staging does not wait
for fsync.  The transaction that records files as staged also inserts a row of ``dirty_files``,
which is deleted after a sync of the file system.  These rows thus name all files that a power
failure can damage.  Rows left by a dead process must be revalidated: their files are set to
waiting, and the process that stages the cart hashes them in place.

The death of a process alone loses no data: what it wrote is in the system's page cache.  Every
process records in ``page_cache`` the identity of that cache, and a process with the same page
cache takes over such rows as its own.  The record is removed during a sync and after a failed one:
the kernel reports a write error only once, and the process that received it may be killed.

The dirty rows of an unfinished cart belong to its holder: a process that claims a cart revalidates
the rows of others first.

To invalidate a staged file, because it is missing on the volume or may be damaged there, is to set
it to waiting.
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

from cartd.model import Cart, CartStatus, FileStatus
from cartd.store.database import Database, Rows, Transaction, lock_writers
from cartd.store.space import transfer_ownership
from cartd.store.tables import (
    BATCH,
    CARTS,
    FINISHED,
    cart,
    cart_of,
    date_of,
    dirty_files,
    file,
    page_cache,
)

DELETE_BATCH = 500
"""Rows per DELETE statement."""
DirtyRows = dict[int, list[int]]
"""Ids of dirty rows, by cart id."""

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
        problem=None,
        updated_date=case(
            (_IS_FINISHED, bindparam("date", type_=DateTime)), else_=cart.c.updated_date
        ),
        # The holder may be alive, and still staging this cart.
        lease_holder=case((_IS_HELD, null()), else_=cart.c.lease_holder),
        lease_until=case((_IS_HELD, null()), else_=cart.c.lease_until),
    )
)
_IS_BUNDLED = select(cart.c.bundle).where(cart.c.id == bindparam("of_cart"))
_READY = (cart.c.deleted_date.is_(None), cart.c.status == CartStatus.READY.value)
# Staging compares all files with their hashes.
_LAST_VERIFIED = case(
    (cart.c.verified_date > cart.c.updated_date, cart.c.verified_date),
    else_=cart.c.updated_date,
)
_LEAST_RECENTLY_VERIFIED = (
    CARTS.where(*_READY, cart.c.bytes_total.is_not(None), bindparam("before") > _LAST_VERIFIED)
    .order_by(_LAST_VERIFIED, cart.c.id)
    .limit(1)
)
_RECORD_VERIFIED = (
    update(cart)
    .where(*_READY, cart.c.id == bindparam("cart_id"))
    .values(verified_date=bindparam("date"))
)
AT_POSITIONS = (
    file.c.cart_id == bindparam("in_cart"),
    file.c.position.in_(bindparam("positions", expanding=True)),
)
STAGED_AT_POSITIONS = select(file.c.position, file.c.size, file.c.linked_to).where(
    *AT_POSITIONS, file.c.status == FileStatus.STAGED.value
)
_ADD_TO_COUNTERS = (
    update(cart)
    .where(cart.c.id == bindparam("cart_id"))
    .values(
        files_staged=cart.c.files_staged + bindparam("more_files"),
        bytes_staged=cart.c.bytes_staged + bindparam("more_bytes"),
        bytes_linked=cart.c.bytes_linked + bindparam("more_linked"),
    )
)
_COUNT_INVALIDATION = (
    update(cart)
    .where(cart.c.id == bindparam("of_cart"))
    .values(invalidations=cart.c.invalidations + 1)
)
_INVALID = {"status": FileStatus.WAITING.value, "error": "", "linked_to": None}
_INVALIDATE = update(file).where(*AT_POSITIONS).values(_INVALID)
_STAGED_AFTER = (
    select(file.c.position)
    .where(
        file.c.cart_id == bindparam("in_cart"),
        file.c.position > bindparam("after"),
        file.c.status == FileStatus.STAGED.value,
    )
    .order_by(file.c.position)
    .limit(bindparam("count"))
)


class Durability:
    """Queries for dirty rows and page caches, and for scrubbing."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def dirty_rows(self, holder: str) -> DirtyRows:
        """Return the dirty rows of ``holder``."""
        return _by_cart(await self._database.rows(_BY_HOLDER, {"holder": holder}))

    async def dirty_holders(self) -> set[str]:
        """Return every process that has dirty rows, or may have had some."""
        return {row.holder for row in await self._database.rows(_HOLDERS)}

    async def dirty_rows_of_others(self, cart_id: int, holder: str) -> DirtyRows:
        """Return the dirty rows of the cart that are not of ``holder``."""
        among = {"cart_id": cart_id, "holder": holder}
        return _by_cart(await self._database.rows(_BY_OTHERS, among))

    async def abandoned_dirty_rows(
        self, holder: str, *, dead: Collection[str], now: float
    ) -> DirtyRows:
        """Return dirty rows of other processes that are ``dead`` or have expired leases."""
        parameters = {"holder": holder, "dead": list(dead), "now": now}
        return _by_cart(await self._database.rows(_ABANDONED, parameters))

    async def record_synced(
        self, rows: Sequence[int], *, holder: str = "", cache: str | None = None
    ) -> None:
        """Delete dirty rows: a sync has written their files to the disk.

        If ``cache`` is given, all else that ``holder`` has written is in that page cache.
        """
        async with self._database.transaction() as transaction:
            for first in range(0, len(rows), DELETE_BATCH):
                await transaction.execute(_DELETE, {"ids": rows[first : first + DELETE_BATCH]})
            if cache is not None:
                await transaction.execute(_CLEAR_PAGE_CACHES, {"holders": [holder]})
                await transaction.execute(_RECORD_PAGE_CACHE, {"holder": holder, "cache": cache})

    async def forget_page_cache(self, holder: str) -> None:
        """Record that it is unknown which page cache holds what ``holder`` has written."""
        async with self._database.transaction() as transaction:
            await transaction.execute(_CLEAR_PAGE_CACHES, {"holders": [holder]})

    async def take_over_dirty_rows(
        self, holder: str, cache: str, *, dead: Collection[str], now: float, until: float
    ) -> int:
        """Make ``holder`` the holder of dirty rows of ``dead`` processes and of expired leases.

        Only rows in the page cache ``cache`` are taken over: the next sync writes their files.
        Returns the number of rows.
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
        """Set the files named by these dirty rows of the cart to waiting; return their number.

        A cart that was ready or in error returns to staging; the lease of the rows' holder ends.
        All files of a bundled cart are set to waiting: some may be in the tar that was being
        written.  Rows that no longer exist are ignored.

        Each row, and each batch of a bundled cart's files, is one transaction, which also returns
        the cart to staging: if another process makes it ready or claims it in between, the next
        transaction undoes that.  If this process dies, the remaining rows are found again; the rows
        of a bundled cart are deleted last, so all of it is repeated.
        """
        number = 0
        bundled = await self._database.rows(_IS_BUNDLED, {"of_cart": cart_id})
        if bundled and bundled[0].bundle:
            return await self._revalidate_bundled(cart_id, rows, now)
        for row in rows:
            async with self._database.transaction() as transaction:
                await lock_writers(transaction)
                for positions in await _restage(transaction, cart_id, [row], now):
                    number += len(positions)
                    await invalidate(transaction, cart_id, positions)
                await transaction.execute(_DELETE, {"ids": [row]})
        return number

    async def least_recently_verified(self, before: float) -> Cart | None:
        """Return the ready cart whose last verification or staging is oldest.

        Returns None if none is older than the Unix time ``before``.  Carts of unknown size (from
        Pacifica, never requested) are skipped.
        """
        rows = await self._database.rows(_LEAST_RECENTLY_VERIFIED, {"before": date_of(before)})
        return cart_of(rows[0]) if rows else None

    async def record_verified(self, cart_id: int, now: float) -> None:
        """Record that the whole cart is intact; ignored if the cart is no longer ready."""
        async with self._database.transaction() as transaction:
            await transaction.execute(_RECORD_VERIFIED, {"cart_id": cart_id, "date": date_of(now)})

    async def _revalidate_bundled(self, cart_id: int, rows: Sequence[int], now: float) -> int:
        after: int | None = -1
        while True:
            async with self._database.transaction() as transaction:
                await lock_writers(transaction)
                dirty = await _restage(transaction, cart_id, rows, now)
                if dirty and after is not None:
                    after = await invalidate_next(transaction, cart_id, after=after, limit=BATCH)
                if not dirty or after is None:
                    # If the rows no longer exist, another process has completed this.
                    await transaction.execute(_DELETE, {"ids": list(rows)})
                    return sum(map(len, dirty))


async def _restage(
    transaction: Transaction, cart_id: int, rows: Sequence[int], now: float
) -> list[list[int]]:
    """Return the cart to staging, and return the positions named by these rows of it.

    Returns an empty list if the rows or the cart were deleted.
    """
    dirty = await transaction.rows(_POSITIONS, {"cart_id": cart_id, "ids": list(rows)})
    holders = list({row.holder for row in dirty})
    back = {"of_cart": cart_id, "date": date_of(now), "holders": holders}
    if not dirty or not await transaction.execute(_RESTAGE, back):
        return []
    return [msgspec.json.decode(row.positions, type=list[int]) for row in dirty]


async def mark_dirty(transaction: Transaction, cart_id: int, positions: Sequence[int]) -> None:
    """Record that the cart's holder has staged these files and they are not yet synced."""
    at = msgspec.json.encode(positions).decode()
    await transaction.execute(_MARK, {"of_cart": cart_id, "at": at})


async def clear_dirty(transaction: Transaction, cart_id: int) -> None:
    """Delete all dirty rows of the cart, whose tree is no longer needed."""
    await transaction.execute(_CLEAR, {"of_cart": cart_id})


async def renew_dirty_rows(transaction: Transaction, holder: str, until: float) -> None:
    """Extend the leases of the dirty rows of ``holder``, which is alive."""
    await transaction.execute(_RENEW, {"by": holder, "until": until})


def _by_cart(rows: Rows) -> DirtyRows:
    dirty: DirtyRows = {}
    for row in rows:
        dirty.setdefault(row.cart_id, []).append(row.id)
    return dirty


async def count(
    transaction: Transaction, cart_id: int, *, files: int = 0, size: int = 0, linked: int = 0
) -> None:
    """Add to the cart's counters of staged files and bytes; values may be negative."""
    if files or size:
        more = {"more_files": files, "more_bytes": size, "more_linked": linked}
        await transaction.execute(_ADD_TO_COUNTERS, {"cart_id": cart_id, **more})


async def invalidate(transaction: Transaction, cart_id: int, positions: Sequence[int]) -> None:
    """Set the files at ``positions`` to waiting.  Links to them keep the old bytes.

    The caller holds :func:`cartd.store.database.lock_writers`.
    """
    await transfer_ownership(transaction, cart_id, positions)
    among = {"in_cart": cart_id, "positions": positions}
    staged = await transaction.rows(STAGED_AT_POSITIONS, among)
    await transaction.execute(_INVALIDATE, among)
    if staged:
        await transaction.execute(_COUNT_INVALIDATION, {"of_cart": cart_id})
    await count(
        transaction,
        cart_id,
        files=-len(staged),
        size=-sum(row.size or 0 for row in staged),
        linked=-sum(row.size for row in staged if row.linked_to is not None),
    )


async def invalidate_next(
    transaction: Transaction, cart_id: int, *, after: int, limit: int
) -> int | None:
    """Invalidate the first ``limit`` staged files after the position ``after``.

    Returns the last position, to continue from, or None if no staged file is left.
    """
    which = {"in_cart": cart_id, "after": after, "count": limit}
    positions = [row.position for row in await transaction.rows(_STAGED_AFTER, which)]
    if positions:
        await invalidate(transaction, cart_id, positions)
    return positions[-1] if len(positions) == limit else None
