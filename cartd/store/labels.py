"""The labels of carts: a row for each, beside the list in the row of the cart.

A list of the carts with a label reads the rows of that label only, however many carts there are.
The order of a cart's labels is that of the list in its own row.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.json import encode
from sqlalchemy import bindparam, delete, insert, update

from cartd.store.database import Transaction
from cartd.store.tables import cart, cart_label

_SET = (
    update(cart)
    .where(cart.c.id == bindparam("of_cart"), cart.c.deleted_date.is_(None))
    .values(labels=bindparam("new_labels"))
    .returning(cart.c.owner)
)
_INSERT = insert(cart_label)
_DELETE = delete(cart_label).where(cart_label.c.cart_id == bindparam("of_cart"))


async def replace_labels(transaction: Transaction, cart_id: int, labels: Sequence[str]) -> bool:
    """Replace the labels of the cart; return False if it has been deleted."""
    values = {"of_cart": cart_id, "new_labels": encode(labels).decode()}
    # It locks the row of the cart, so that its labels are changed by one at a time.
    changed = await transaction.rows(_SET, values)
    if not changed:
        return False
    await delete_labels(transaction, cart_id)
    await insert_labels(transaction, cart_id, changed[0].owner, labels)
    return True


async def insert_labels(
    transaction: Transaction, cart_id: int, owner: str | None, labels: Sequence[str]
) -> None:
    """Add the rows of the labels of a cart that has none yet."""
    if labels:
        rows = [{"label": label, "cart_id": cart_id, "owner": owner} for label in labels]
        await transaction.execute(_INSERT, rows)


async def delete_labels(transaction: Transaction, cart_id: int) -> None:
    """Delete the rows of the labels of a cart that was deleted: it is in no list."""
    await transaction.execute(_DELETE, {"of_cart": cart_id})
