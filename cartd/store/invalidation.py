"""Invalidate staged files that are missing on the volume, or may be damaged there.

The caller holds :func:`cartd.store.byte_ownership.lock_writers`.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import bindparam, select, update

from cartd.model import FileStatus
from cartd.store.byte_ownership import transfer_ownership
from cartd.store.database import Transaction
from cartd.store.tables import cart, file

AT_POSITIONS = (
    file.c.cart_id == bindparam("in_cart"),
    file.c.position.in_(bindparam("positions", expanding=True)),
)
STAGED_AT_POSITIONS = select(file.c.position, file.c.size, file.c.linked_to).where(
    *AT_POSITIONS, file.c.status == FileStatus.STAGED.value
)
_COUNT = (
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


async def count(
    transaction: Transaction, cart_id: int, *, files: int = 0, size: int = 0, linked: int = 0
) -> None:
    """Add to the cart's counters of staged files and bytes; values may be negative."""
    if files or size:
        more = {"more_files": files, "more_bytes": size, "more_linked": linked}
        await transaction.execute(_COUNT, {"cart_id": cart_id, **more})


async def invalidate(transaction: Transaction, cart_id: int, positions: Sequence[int]) -> None:
    """Set the files at ``positions`` to waiting.  Links to them keep the old bytes."""
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
