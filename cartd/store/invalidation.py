"""Files that are not on the volume, or not known to be right there, whatever was recorded of them.

The caller has taken its turn (:func:`cartd.store.byte_ownership.take_turn`).
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import bindparam, select, update

from cartd.model import FileStatus
from cartd.store.byte_ownership import pass_on
from cartd.store.database import Transaction
from cartd.store.tables import cart, file

AMONG = (
    file.c.cart_id == bindparam("in_cart"),
    file.c.position.in_(bindparam("positions", expanding=True)),
)
STAGED_AMONG = select(file.c.position, file.c.size, file.c.linked_to).where(
    *AMONG, file.c.status == FileStatus.STAGED.value
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
_LOSES = update(cart).where(cart.c.id == bindparam("of_cart")).values(losses=cart.c.losses + 1)
_LOST = {"status": FileStatus.WAITING.value, "error": "", "linked_to": None}
_LOSE = update(file).where(*AMONG).values(_LOST)
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
    """More files of the cart are staged, or fewer, with so many bytes."""
    if files or size:
        more = {"more_files": files, "more_bytes": size, "more_linked": linked}
        await transaction.execute(_COUNT, {"cart_id": cart_id, **more})


async def lose(transaction: Transaction, cart_id: int, positions: Sequence[int]) -> None:
    """The files at ``positions`` wait again.  Links to them hold what they were."""
    await pass_on(transaction, cart_id, positions)
    among = {"in_cart": cart_id, "positions": positions}
    staged = await transaction.rows(STAGED_AMONG, among)
    await transaction.execute(_LOSE, among)
    if staged:
        await transaction.execute(_LOSES, {"of_cart": cart_id})
    await count(
        transaction,
        cart_id,
        files=-len(staged),
        size=-sum(row.size or 0 for row in staged),
        linked=-sum(row.size for row in staged if row.linked_to is not None),
    )


async def lose_some(transaction: Transaction, cart_id: int, *, after: int, most: int) -> int | None:
    """The first files beyond the position ``after`` that are staged wait again, ``most`` of them.

    Gives the last one's position, from which to go on; none when that were all.
    """
    which = {"in_cart": cart_id, "after": after, "count": most}
    positions = [row.position for row in await transaction.rows(_STAGED_AFTER, which)]
    if positions:
        await lose(transaction, cart_id, positions)
    return positions[-1] if len(positions) == most else None
