"""Files that are not on the volume, or not known to be right there, whatever was recorded of them.

The caller has taken its turn (:func:`cartd.store.owners.take_turn`).
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import bindparam, select, update

from cartd.model import FileStatus
from cartd.store.database import Transaction
from cartd.store.owners import end_sharing, pass_on
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
_LOSE_ALL = (
    update(file)
    .where(file.c.cart_id == bindparam("in_cart"), file.c.status == FileStatus.STAGED.value)
    .values(_LOST)
)
_NOTHING_STAGED = (
    update(cart)
    .where(cart.c.id == bindparam("of_cart"))
    .values(files_staged=0, bytes_staged=0, bytes_linked=0, losses=cart.c.losses + 1)
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


async def lose_all(transaction: Transaction, cart_id: int) -> None:
    """All of the cart's files wait again that were staged."""
    await end_sharing(transaction, cart_id)
    await transaction.execute(_LOSE_ALL, {"in_cart": cart_id})
    await transaction.execute(_NOTHING_STAGED, {"of_cart": cart_id})
