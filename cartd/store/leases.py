"""Leases: at most one process stages a cart, until its lease expires."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from sqlalchemy import DateTime, bindparam, case, func, or_, select, update

from cartd.errors import LeaseLost
from cartd.model import Cart, CartStatus
from cartd.store.database import Database, Transaction, lock_writers
from cartd.store.durability import renew_dirty_rows
from cartd.store.tables import CARTS, UNFINISHED, cart, cart_of, date_of

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
        pace=None,  # measured by another process
        updated_date=case((_WAITING, bindparam("date", type_=DateTime)), else_=cart.c.updated_date),
        started_date=func.coalesce(cart.c.started_date, bindparam("date", type_=DateTime)),
        status=case((_WAITING, CartStatus.STAGING.value), else_=cart.c.status),
    )
)
_CLAIMED = CARTS.where(cart.c.id == bindparam("cart_id"))
_HELD = (cart.c.lease_holder == bindparam("holder"), cart.c.deleted_date.is_(None))
_HOLDERS = (
    select(cart.c.lease_holder, func.max(cart.c.lease_until).label("until"))
    .where(cart.c.lease_holder.is_not(None), cart.c.deleted_date.is_(None))
    .group_by(cart.c.lease_holder)
)
# Does not wait: a row that another transaction has locked is renewed the next time.
_UNLOCKED = select(cart.c.id).where(*_HELD).with_for_update(skip_locked=True)
_RENEW = (
    update(cart)
    .where(cart.c.id.in_(_UNLOCKED))
    .values(lease_until=bindparam("until"), version=cart.c.version)
)
_RENEWED = select(cart.c.id).where(*_HELD)
_RELEASE_ALL = update(cart).where(*_HELD).values(lease_holder=None, lease_until=None)
_RELEASE = _RELEASE_ALL.where(cart.c.id == bindparam("cart_id"))
# The row stays locked until the transaction ends, so no other process can claim the cart.
_LOCK = select(cart.c.id).where(cart.c.id == bindparam("cart_id"), *_HELD).with_for_update()


class Leases:
    """Queries for the leases of carts."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def claimable(self, holder: str, *, now: float, dead: Collection[str] = ()) -> list[int]:
        """Return the ids of the carts that ``holder`` could :meth:`claim`, oldest first."""
        parameters = {"holder": holder, "now": now, "dead": list(dead)}
        return [row.id for row in await self._database.rows(_TO_CLAIM, parameters)]

    async def claim(
        self, cart_id: int, holder: str, *, now: float, until: float, dead: Collection[str] = ()
    ) -> Cart | None:
        """Lease the cart to ``holder`` until the Unix time ``until``; return it, or None.

        The cart must be unfinished and not deleted, and its lease must be free, expired, the
        holder's own, or of one of ``dead``.  A waiting cart is set to staging.
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
        """Return every lease holder with the end of its last lease, expired or not."""
        rows = await self._database.rows(_HOLDERS)
        return {row.lease_holder: float(row.until) for row in rows}

    async def renew(self, holder: str, until: float) -> set[int]:
        """Extend all leases of ``holder``; return the ids of the carts that it still holds.

        Its dirty rows are extended, too.  Does not take :func:`lock_writers`: a transaction that
        holds that lock for long must not cost other processes their leases.
        """
        async with self._database.transaction() as transaction:
            await transaction.execute(_RENEW, {"holder": holder, "until": until})
            await renew_dirty_rows(transaction, holder, until)
            rows = await transaction.rows(_RENEWED, {"holder": holder})
        return {row.id for row in rows}

    async def release(self, holder: str, cart_id: int) -> None:
        """Release the lease on the cart; ignored if another process holds it."""
        async with self._database.transaction() as transaction:
            await transaction.execute(_RELEASE, {"cart_id": cart_id, "holder": holder})

    async def release_all(self, holder: str) -> None:
        """Release all leases of ``holder``."""
        async with self._database.transaction() as transaction:
            await lock_writers(transaction)
            await transaction.execute(_RELEASE_ALL, {"holder": holder})


async def require_lease(transaction: Transaction, cart_id: int, holder: str) -> None:
    """Lock the lease of ``holder`` on the cart until the transaction ends; else ``LeaseLost``."""
    if not await transaction.rows(_LOCK, {"cart_id": cart_id, "holder": holder}):
        raise LeaseLost(f"Cart {cart_id} was deleted or taken over by another process")


class LeaseObserver:
    """Finds holders that have renewed no lease for ``seconds``, by the observer's monotonic clock.

    By their dates alone, the leases of a dead process would be valid longer if this machine's
    clock was set back or is behind that of the other machine.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._seen: dict[str, tuple[float, float]] = {}
        """By holder, the end of the latest lease, and when that was first observed."""

    def expired(self, ends: Mapping[str, float], now: float) -> set[str]:
        """Return the expired holders; ``ends`` has the latest end of a lease of each holder."""
        before = self._seen
        self._seen = {
            name: before[name] if name in before and before[name][0] == end else (end, now)
            for name, end in ends.items()
        }
        return {name for name, (_, since) in self._seen.items() if now - since >= self._seconds}
