"""Who stages a cart: at most one process, for as long as it says that it is alive."""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import DateTime, bindparam, case, func, or_, select, update

from cartd.errors import LeaseLost
from cartd.model import Cart, CartStatus
from cartd.store.byte_ownership import lock_writers
from cartd.store.database import Database, Transaction
from cartd.store.durability import renew_dirty_rows
from cartd.store.rows import CARTS, UNFINISHED, cart_of, date_of
from cartd.store.tables import cart

_WAITING = cart.c.status == CartStatus.WAITING.value
_CLAIMABLE = (
    cart.c.deleted_date.is_(None),
    cart.c.status.in_(UNFINISHED),
    or_(
        cart.c.lease_holder.is_(None),
        cart.c.lease_holder == bindparam("holder"),
        cart.c.lease_until <= bindparam("now"),
        cart.c.lease_holder.in_(bindparam("dead", expanding=True)),
    ),
)
_TO_CLAIM = select(cart.c.id).where(*_CLAIMABLE).order_by(cart.c.id)
_CLAIM = (
    update(cart)
    .where(cart.c.id == bindparam("cart_id"), *_CLAIMABLE)
    .values(
        lease_holder=bindparam("holder"),
        lease_until=bindparam("until"),
        updated_date=case((_WAITING, bindparam("date", type_=DateTime)), else_=cart.c.updated_date),
        status=case((_WAITING, CartStatus.STAGING.value), else_=cart.c.status),
    )
)
_CLAIMED = CARTS.where(cart.c.id == bindparam("cart_id"))
_HELD = (cart.c.lease_holder == bindparam("holder"), cart.c.deleted_date.is_(None))
_HOLDERS = (
    select(cart.c.lease_holder, func.max(cart.c.lease_until))
    .where(cart.c.lease_holder.is_not(None), cart.c.deleted_date.is_(None))
    .group_by(cart.c.lease_holder)
)
# Without waiting for anybody: a row that another transaction has just now is renewed the next time.
_UNLOCKED = select(cart.c.id).where(*_HELD).with_for_update(skip_locked=True)
_RENEW = update(cart).where(cart.c.id.in_(_UNLOCKED)).values(lease_until=bindparam("until"))
_RENEWED = select(cart.c.id).where(*_HELD)
_RELEASE_ALL = update(cart).where(*_HELD).values(lease_holder=None, lease_until=None)
_RELEASE = _RELEASE_ALL.where(cart.c.id == bindparam("cart_id"))
# The row stays locked until the transaction ends, so that nobody takes the cart over meanwhile.
_LOCK = select(cart.c.id).where(cart.c.id == bindparam("cart_id"), *_HELD).with_for_update()


class Leases:
    """The part of the store that says who works on what."""

    _database: Database

    async def claimable(self, holder: str, *, now: float, dead: Collection[str] = ()) -> list[int]:
        """The ids of the carts that :meth:`claim` would give to ``holder``, oldest first."""
        parameters = {"holder": holder, "now": now, "dead": list(dead)}
        return [row.id for row in await self._database.rows(_TO_CLAIM, parameters)]

    async def claim(
        self, cart_id: int, holder: str, *, now: float, until: float, dead: Collection[str] = ()
    ) -> Cart | None:
        """The cart, now held by ``holder`` until the Unix time ``until``; None if it may not.

        It may if the cart is unfinished and not deleted, and its lease is free, its own, run out,
        or held by one of ``dead``.  A cart that was waiting is now in staging.
        """
        wanted = {
            "cart_id": cart_id,
            "holder": holder,
            "now": now,
            "until": until,
            "date": date_of(now),
            "dead": list(dead),
        }
        async with self._database.transaction() as transaction:
            if not await transaction.execute(_CLAIM, wanted):
                return None
            return cart_of((await transaction.rows(_CLAIMED, {"cart_id": cart_id}))[0])

    async def holders(self) -> dict[str, float]:
        """Everyone who holds a lease, run out or not, and when the last of theirs ends."""
        return {holder: float(until) for holder, until in await self._database.rows(_HOLDERS)}

    async def renew(self, holder: str, until: float) -> set[int]:
        """Prolong all leases of ``holder``; the ids of the carts that it still holds.

        What it has staged, and nobody knows to be on the disk, is its own for as long.  It does not
        take its turn: whoever keeps that long must not cost others their leases.
        """
        async with self._database.transaction() as transaction:
            await transaction.execute(_RENEW, {"holder": holder, "until": until})
            await renew_dirty_rows(transaction, holder, until)
            rows = await transaction.rows(_RENEWED, {"holder": holder})
        return {row.id for row in rows}

    async def release(self, holder: str, cart_id: int) -> None:
        """Let go of the cart; nothing happens if another holds it by now."""
        async with self._database.transaction() as transaction:
            await transaction.execute(_RELEASE, {"cart_id": cart_id, "holder": holder})

    async def release_all(self, holder: str) -> None:
        """Let go of all carts that ``holder`` holds still."""
        async with self._database.transaction() as transaction:
            await lock_writers(transaction)
            await transaction.execute(_RELEASE_ALL, {"holder": holder})


async def require_lease(transaction: Transaction, cart_id: int, holder: str) -> None:
    """Make sure, until the transaction ends, that ``holder`` holds the cart; else ``LeaseLost``."""
    if not await transaction.rows(_LOCK, {"cart_id": cart_id, "holder": holder}):
        raise LeaseLost(f"Cart {cart_id} was deleted or taken over by another process")
