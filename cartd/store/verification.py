"""When carts were last compared with their hashes."""

from __future__ import annotations

from sqlalchemy import bindparam, case, update

from cartd.model import Cart, CartStatus
from cartd.store.database import Database
from cartd.store.rows import CARTS, cart_of, date_of
from cartd.store.tables import cart

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
_RECORD = (
    update(cart)
    .where(*_READY, cart.c.id == bindparam("cart_id"))
    .values(verified_date=bindparam("date"))
)


class Verification:
    """Queries for scrubbing."""

    _database: Database

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
            await transaction.execute(_RECORD, {"cart_id": cart_id, "date": date_of(now)})
