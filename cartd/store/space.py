"""Space used by the carts on the volume, what may be evicted, and byte ownership of hard links.

Strategy: of the files that are one inode on the volume, one owns the bytes and all others are
``linked_to`` it: files of other carts, usually, or of the same cart if its manifest names a file
twice.  ``bytes_staged`` and ``volume_bytes`` of a cart ignore sharing; ``bytes_linked`` says how
many of these bytes are owned elsewhere, and the cart counts with the difference.  When an owner is
removed, its oldest link becomes the owner in the same transaction.  Only ``bytes_linked`` of the
new owner's cart changes then, so concurrent updates of its other columns are not lost.

Invariant: if a row is ``linked_to`` another, both files are staged and both carts are undeleted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import (
    ColumnElement,
    String,
    bindparam,
    case,
    cast,
    func,
    null,
    select,
    union_all,
    update,
)

from cartd.model import CartStatus, EvictionCandidate, SharedBytes
from cartd.store.database import Database, Transaction
from cartd.store.tables import FINISHED, UNFINISHED, cart, file, time_of

_NOT_DELETED = cart.c.deleted_date.is_(None)
_UNWRITTEN = case(
    (
        cart.c.status.in_(UNFINISHED) & (cart.c.volume_bytes > cart.c.bytes_staged),
        cart.c.volume_bytes - cart.c.bytes_staged,
    ),
    else_=0,
)
_OWNED = cart.c.volume_bytes - cart.c.bytes_linked
_COUNTED = (_OWNED.label("owned"), _UNWRITTEN.label("unwritten"), cart.c.bytes_linked)
# Two queries with an index each: deleted carts are kept as history.
_ON_VOLUME = union_all(
    select(*_COUNTED).where(_NOT_DELETED),
    select(*_COUNTED).where(cart.c.deleted_date.is_not(None), cart.c.removed_date.is_(None)),
).subquery()
_USAGE = select(
    func.sum(_ON_VOLUME.c.owned).label("owned"),
    func.sum(_ON_VOLUME.c.unwritten).label("unwritten"),
)
_BY_OWNER = (
    select(cart.c.owner, cart.c.status, func.count().label("carts"), func.sum(_OWNED).label("size"))
    .where(_NOT_DELETED)
    .group_by(cart.c.owner, cart.c.status)
)
_EVICTABLE = select(cart.c.id, _OWNED, cart.c.used_date).where(
    _NOT_DELETED, cart.c.status.in_(FINISHED), cart.c.volume_bytes > 0, cart.c.evicting.is_(None)
)
_LINKED = select(func.sum(_ON_VOLUME.c.bytes_linked).label("size"))
# One row per shared file, then one for all files shared by the same carts.
_links = (
    select(
        file.c.linked_to,
        func.max(file.c.size).label("size"),
        func.aggregate_strings(cast(file.c.cart_id, String), ",").label("carts"),
    )
    .where(file.c.linked_to.is_not(None))
    .group_by(file.c.linked_to)
    .subquery()
)
_SHARED_BYTES = (
    select(file.c.cart_id, _links.c.carts, func.sum(_links.c.size))
    .join(_links, _links.c.linked_to == file.c.id)
    .group_by(file.c.cart_id, _links.c.carts)
)


async def usage_in(database: Database | Transaction) -> tuple[int, int]:
    """As :meth:`Space.usage`."""
    [row] = await database.rows(_USAGE)
    return int(row.owned or 0), int(row.unwritten or 0)


class Space:
    """Queries for used and shared space."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def usage(self) -> tuple[int, int]:
        """Return the bytes that all carts use or have reserved, and those not yet written.

        Bytes shared by several carts count once; deleted carts count until they are removed.
        """
        return await usage_in(self._database)

    async def by_owner(self) -> list[tuple[str | None, CartStatus, int, int]]:
        """Return owner, status, number and bytes of the undeleted carts."""
        return [
            (row.owner, CartStatus(row.status), int(row.carts), int(row.size or 0))
            for row in await self._database.rows(_BY_OWNER)
        ]

    async def evictable(self) -> list[EvictionCandidate]:
        """Return the carts that may be evicted: finished, with bytes on the volume."""
        rows = await self._database.rows(_EVICTABLE)
        # By position: there may be a row for every cart, and access by name takes twice as long.
        return [EvictionCandidate(cart_id, size, time_of(used)) for cart_id, size, used in rows]

    async def shared_bytes(self) -> list[SharedBytes]:
        """Return which carts share bytes; cheap if none do."""
        [linked] = await self._database.rows(_LINKED)
        if not linked.size:
            return []
        return [
            SharedBytes(owner, frozenset(map(int, carts.split(","))), int(size))
            for owner, carts, size in await self._database.rows(_SHARED_BYTES)
        ]


_OF_CART = file.c.cart_id == bindparam("of_cart")
_AT = file.c.position.in_(bindparam("positions", expanding=True))
_ADD_OWNED_BYTES = (
    update(cart)
    .where(cart.c.id == bindparam("new_owner_cart"))
    .values(bytes_linked=cart.c.bytes_linked - bindparam("size"))
)
_SUBTRACT_LINKED_BYTES = (
    update(cart)
    .where(cart.c.id == bindparam("of_cart"))
    .values(bytes_linked=cart.c.bytes_linked - bindparam("size"))
)


class _OwnershipTransfer:
    """Statements that transfer the bytes owned by the files ``leaving`` to their oldest links."""

    def __init__(
        self, leaving: ColumnElement[bool], excluded: ColumnElement[bool] | None = None
    ) -> None:
        """Files in ``excluded`` cannot become owners; by default those of ``leaving``."""
        new_owners = (
            select(file.c.linked_to.label("owner"), func.min(file.c.id).label("new_owner"))
            .where(
                file.c.linked_to.in_(select(file.c.id).where(leaving)),
                ~(leaving if excluded is None else excluded),
            )
            .group_by(file.c.linked_to)
            .subquery()
        )
        self.gains = (
            select(file.c.cart_id.label("new_owner_cart"), func.sum(file.c.size).label("size"))
            .where(file.c.id == new_owners.c.new_owner)
            .group_by(file.c.cart_id)
        )
        self.relink = (
            update(file)
            .where(file.c.linked_to == new_owners.c.owner)
            .values(
                linked_to=case(
                    (file.c.id == new_owners.c.new_owner, null()), else_=new_owners.c.new_owner
                )
            )
        )


_TRANSFER_AT = _OwnershipTransfer(_OF_CART & _AT)
_BETWEEN = file.c.position.between(bindparam("first"), bindparam("last"))
_TRANSFER_BETWEEN = _OwnershipTransfer(_OF_CART & _BETWEEN, _OF_CART)
_LINKED_BETWEEN = _OF_CART & _BETWEEN & file.c.linked_to.is_not(None)
_LINKED_BYTES = select(func.coalesce(func.sum(file.c.size), 0).label("size")).where(_LINKED_BETWEEN)
_UNLINK = update(file).where(_LINKED_BETWEEN).values(linked_to=None)


async def transfer_ownership(
    transaction: Transaction, cart_id: int, positions: Sequence[int]
) -> int:
    """Transfer the bytes that the files at ``positions`` own and others share.

    Returns the number of bytes transferred.  Links among these files are left for the caller to
    clear.  The caller holds :func:`cartd.store.database.lock_writers`.
    """
    which = {"of_cart": cart_id, "positions": positions}
    return await _transfer_ownership(transaction, _TRANSFER_AT, which)


async def transfer_ownership_between(
    transaction: Transaction, of_cart: int, first: int, last: int
) -> int:
    """As :func:`transfer_ownership`, for ``first`` to ``last``; the whole cart is leaving."""
    which = {"of_cart": of_cart, "first": first, "last": last}
    return await _transfer_ownership(transaction, _TRANSFER_BETWEEN, which)


async def _transfer_ownership(
    transaction: Transaction, statements: _OwnershipTransfer, which: dict[str, Any]
) -> int:
    gains = [
        {"new_owner_cart": row.new_owner_cart, "size": int(row.size)}
        for row in await transaction.rows(statements.gains, which)
    ]
    if gains:
        await transaction.execute(_ADD_OWNED_BYTES, gains)
        await transaction.execute(statements.relink, which)
    return sum(gain["size"] for gain in gains)


async def end_sharing_between(
    transaction: Transaction, cart_id: int, first: int, last: int
) -> None:
    """Record that the files ``first`` to ``last`` are no longer on the volume.

    Afterwards they are no links, and own no bytes that others share.  All files of the cart leave.
    """
    await transfer_ownership_between(transaction, cart_id, first, last)
    which = {"of_cart": cart_id, "first": first, "last": last}
    [row] = await transaction.rows(_LINKED_BYTES, which)
    await transaction.execute(_UNLINK, which)
    if row.size:
        linked = {"of_cart": cart_id, "size": int(row.size)}
        await transaction.execute(_SUBTRACT_LINKED_BYTES, linked)
