"""Which carts wait for the archive or its tapes, and a file that the archive should have."""

from __future__ import annotations

from typing import Any

from sqlalchemy import bindparam, func, select, update

from cartd.model import CartStatus, FileStatus
from cartd.store.byte_ownership import lock_writers
from cartd.store.database import Database
from cartd.store.rows import date_of
from cartd.store.tables import cart, file

_HELD = update(cart).where(
    cart.c.lease_holder == bindparam("holder"), cart.c.deleted_date.is_(None)
)
_BEGIN = _HELD.where(cart.c.status == CartStatus.STAGING.value).values(
    waits_since=func.coalesce(cart.c.waits_since, bindparam("since")), waits_for=bindparam("cause")
)
_END = _HELD.where(cart.c.waits_since.is_not(None)).values(waits_since=None, waits_for=None)
_ONE_HELD = _HELD.where(cart.c.id == bindparam("one_cart"))
_ON_TAPE = _ONE_HELD.values(
    tape_since=func.coalesce(cart.c.tape_since, bindparam("since")), tape_files=bindparam("files")
)
_OFF_TAPE = _ONE_HELD.values(tape_since=None, tape_files=None)
_NEWEST_WITH_FILES = (
    select(func.max(cart.c.id))
    .where(cart.c.files_staged > 0, cart.c.deleted_date.is_(None))
    .scalar_subquery()
)
_STAGED = (
    select(file.c.file_name)
    .where(
        file.c.cart_id == _NEWEST_WITH_FILES,
        file.c.status == FileStatus.STAGED.value,
        file.c.file_name != bindparam("other_than"),
    )
    .limit(1)
)


class ArchiveWaits:
    """Queries for outages of the archive, and for tape recalls."""

    _database: Database

    async def begin_waiting(self, holder: str, since: float, cause: str) -> None:
        """Mark all carts held by ``holder`` as waiting; those that wait already keep their time."""
        async with self._database.transaction() as transaction:
            await lock_writers(transaction)
            values = {"holder": holder, "since": date_of(since), "cause": cause}
            await transaction.execute(_BEGIN, values)

    async def end_waiting(self, holder: str) -> None:
        """Mark all carts held by ``holder`` as no longer waiting."""
        async with self._database.transaction() as transaction:
            await lock_writers(transaction)
            await transaction.execute(_END, {"holder": holder})

    async def record_tape(self, cart_id: int, holder: str, files: int, *, now: float) -> None:
        """Record how many files of the cart are on tape; the first time recorded is kept.

        Ignored if another process holds the cart.
        """
        values: dict[str, Any] = {"holder": holder, "one_cart": cart_id}
        statement = _OFF_TAPE
        if files:
            statement = _ON_TAPE
            values |= {"since": date_of(now), "files": files}
        async with self._database.transaction() as transaction:
            await transaction.execute(statement, values)

    async def recently_staged_file(self, other_than: str) -> str | None:
        """Return the archive id of a staged file of the newest cart that has any.

        The result is not ``other_than``; None if the cart has no other staged file.
        """
        rows = await self._database.rows(_STAGED, {"other_than": other_than})
        return rows[0].file_name if rows else None
