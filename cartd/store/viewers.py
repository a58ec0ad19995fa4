"""Which carts a viewer may see, and how many unfinished carts an owner has.

A client finds a uid only among the carts that it may see.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import bindparam, case, func, select

from cartd.carts.quotas import Outstanding, UserQuota
from cartd.model import Cart, Viewer
from cartd.store.database import Database, Transaction
from cartd.store.lookups import Lookups
from cartd.store.rows import CARTS, UNFINISHED, cart_of
from cartd.store.tables import cart

_OF_UID = CARTS.where(cart.c.cart_uid == bindparam("uid"), cart.c.deleted_date.is_(None)).order_by(
    cart.c.id.desc()
)
_OF_OWNER = _OF_UID.where(cart.c.owner == bindparam("owner"))
_NEWEST_OF_UID, _NEWEST_OF_OWNER = _OF_UID.limit(1), _OF_OWNER.limit(1)
_UNSTAGED_BYTES = case(
    (cart.c.bytes_total > cart.c.bytes_staged, cart.c.bytes_total - cart.c.bytes_staged), else_=0
)
_OUTSTANDING = select(
    func.count(),
    func.sum(cart.c.files_total - cart.c.files_staged),
    func.sum(_UNSTAGED_BYTES),
).where(
    cart.c.owner == bindparam("owner"),
    cart.c.status.in_(UNFINISHED),
    cart.c.deleted_date.is_(None),
)

_UNFINISHED = select(func.count().label("carts")).where(
    cart.c.deleted_date.is_(None),
    cart.c.status.in_(UNFINISHED),
)


class Viewers:
    """Queries by viewer and owner."""

    _database: Database
    _lookups: Lookups

    async def newest_for(self, viewer: Viewer, uid: str) -> Cart | None:
        """Return the newest undeleted cart of ``uid`` that ``viewer`` may see."""
        if viewer.sees_all:
            return await self._lookups.newest(uid)
        assert viewer.owner is not None
        return await self._lookups.newest_of(viewer.owner, uid)

    async def unfinished(self) -> int:
        """Return the number of carts that are neither ready nor in error, of all processes."""
        [row] = await self._database.rows(_UNFINISHED, {})
        count: int = row.carts
        return count

    async def carts_for(self, viewer: Viewer, uid: str) -> list[Cart]:
        """Return all undeleted carts of ``uid`` that ``viewer`` may see, newest first."""
        query = _OF_UID if viewer.sees_all else _OF_OWNER
        return [cart_of(row) for row in await self._database.rows(query, _parameters(viewer, uid))]


async def newest_in(transaction: Transaction, viewer: Viewer, uid: str) -> Cart | None:
    """As :meth:`Viewers.newest_for`, within a transaction."""
    query = _NEWEST_OF_UID if viewer.sees_all else _NEWEST_OF_OWNER
    rows = await transaction.rows(query, _parameters(viewer, uid))
    return cart_of(rows[0]) if rows else None


async def check_quota(transaction: Transaction, owner: str, limits: UserQuota, files: int) -> None:
    """Check that ``owner`` may post one more cart of ``files`` files.

    Takes an advisory lock until the transaction ends, so concurrent posts of one user, from any
    process, are counted one after the other.

    :raises QuotaExceeded: the quota is exceeded.
    """
    await transaction.advisory_lock(f"quota of {owner}")
    [(carts, unstaged, size)] = await transaction.rows(_OUTSTANDING, {"owner": owner})
    limits.check(Outstanding(int(carts), int(unstaged or 0), int(size or 0)), files)


def _parameters(viewer: Viewer, uid: str) -> dict[str, Any]:
    return {"uid": uid} if viewer.sees_all else {"uid": uid, "owner": viewer.owner}
